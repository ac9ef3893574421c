"""The import rules between the rooms, checked against the sources."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SERVICE = Path(__file__).parents[2] / "service"
PACKAGE = SERVICE / "chatrpc_server"
ECHO = SERVICE / "chatrpc_echo"
FILES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT: dict[str, set[str]] = {
    "__main__": {"cli"},
    "cli": {"demo", "server", "telemetry", "process", "core", "settings"},
    "demo": {"server", "process", "settings"},
    "server": {"rpc", "upstream", "telemetry", "process", "core", "settings"},
    "rpc": {"telemetry", "process", "core", "settings"},
    "upstream": {"telemetry", "process", "core", "settings"},
    "telemetry": {"process", "core", "settings"},
    "process": {"settings"},
    "core": set(),
    "settings": set(),
}
"""Room (a file or folder of the package) to the other rooms that it may import: a directed graph without cycles."""

ONLY_IN: dict[str, set[str]] = {
    "grpc": {"rpc", "server", "cli", "demo"},
    "grpc_health": {"rpc", "server", "cli"},
    "grpc_reflection": {"rpc"},
    "google.rpc": {"rpc"},
    "httpx": {"upstream"},
    "httptools": {"upstream"},
    "aiohappyeyeballs": {"upstream"},
    "httpcore": {"upstream"},
    "aiohttp": set(),
    "chatrpc_echo": {"cli", "demo"},
    "prometheus_client": {"telemetry"},
    "yaml": {"settings"},
    "uvloop": {"cli"},
    "opentelemetry": {"telemetry"},
}
"""Library to the rooms that may import it. cli and demo are clients of the service too."""

SETS_ENVIRONMENT = PACKAGE / "telemetry" / "multiprocess.py"
"""Sets a variable for prometheus_client, which accepts the folder of its files in no other way."""

NOT_IN_CORE = {"asyncio", "time", "os", "random", "socket", "threading", "logging"}


def part(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ids(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def module(file: Path) -> str:
    return ".".join(file.relative_to(SERVICE).with_suffix("").parts).removesuffix(".__init__")


def test_there_are_ten_rooms() -> None:
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {"__init__", "__pycache__"}
    assert rooms == set(MAY_IMPORT)
    assert len(rooms) == 10


def test_rooms_and_modules_have_no_import_cycle() -> None:
    list(TopologicalSorter(MAY_IMPORT).static_order())  # raises CycleError
    modules = {module(file): file for file in FILES}
    known = {
        name: {each for each in modules if each != name and (each in found or within_any(found, each, modules))}
        for name, file in modules.items()
        for found in [imports(file)]
    }
    list(TopologicalSorter(known).static_order())


def within_any(names: set[str], target: str, modules: dict[str, Path]) -> bool:
    """Whether a name is an attribute of the module `target`, and no module itself."""
    return any(name not in modules and name.rpartition(".")[0] == target for name in names)


@pytest.mark.parametrize("room", ["telemetry", "process"])
def test_telemetry_takes_names_and_no_settings(room: str) -> None:
    names = {name for file in FILES if part(file) == room for name in imports(file)}
    assert {name for name in names if within(name, "chatrpc_server.settings")} == {
        "chatrpc_server.settings.address.Address"
    }


def test_echo_imports_none_of_ours() -> None:
    names = {name.split(".")[0] for file in ECHO.rglob("*.py") for name in imports(file)}
    assert not {"chatrpc", "chatrpc_server", "chatrpc_client", "grpc"} & names


def test_every_part_has_its_rule() -> None:
    assert {part(file) for file in FILES} - {"__init__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_parts_import_only_what_they_may(file: Path) -> None:
    known = set(MAY_IMPORT)
    ours = {name.split(".")[1] for name in imports(file) if within(name, "chatrpc_server")} & known
    assert ours - {part(file)} <= MAY_IMPORT.get(part(file), set())


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_libraries_stay_where_they_belong(file: Path) -> None:
    for library, parts in ONLY_IN.items():
        if any(within(name, library) for name in imports(file)):
            assert part(file) in parts, f"{library} belongs to {', '.join(sorted(parts))}"


@pytest.mark.parametrize("file", [file for file in FILES if part(file) == "core"], ids=ids)
def test_the_core_is_pure(file: Path) -> None:
    names = imports(file)
    assert not {name for name in names if name.split(".")[0] in NOT_IN_CORE}
    assert not {name for name in names if "_pb2_grpc" in name}


@pytest.mark.parametrize("file", [file for file in FILES if part(file) != "settings"], ids=ids)
def test_only_settings_read_the_environment(file: Path) -> None:
    names = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(ast.parse(file.read_text()))}
    assert not {"getenv", "putenv"} & names
    if file != SETS_ENVIRONMENT:
        assert "os.environ" not in file.read_text()


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_files_have_a_docstring_and_one_concern(file: Path) -> None:
    source = file.read_text()
    assert ast.get_docstring(ast.parse(source)), "a module needs a docstring"
    assert len(source.splitlines()) <= 400, "more than 400 lines: split the module"
    assert not {"utils", "helpers", "common", "manager", "base"} & set(file.stem.split("_"))
