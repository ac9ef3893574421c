"""Check that the lower bounds of a project are those of its lowest resolution. Arguments: pyproject.toml, pin file."""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version


def main() -> int:
    project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
    extras = project.get("optional-dependencies", {}).values()
    required = [Requirement(each) for each in [*project["dependencies"], *(each for extra in extras for each in extra)]]
    pins = [Requirement(line) for line in Path(sys.argv[2]).read_text().splitlines() if "==" in line]
    lowest = {pin.name: Version(next(iter(pin.specifier)).version) for pin in pins}

    wrong = 0
    for requirement in required:
        if requirement.name == "chatrpc-protos":  # has the version of the others
            continue
        bounds = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
        if bounds != [lowest[requirement.name]]:
            wrong += 1
            print(
                f"{sys.argv[1]}: {requirement}: cannot be installed; the lowest version is {lowest[requirement.name]}"
            )
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
