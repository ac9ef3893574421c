#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build a source distribution and a wheel of each Python package; with --image the image too.

.venv/bin/python deploy/release/build.py [--image] FOLDER

Each wheel is built from the unpacked source distribution, which proves that the latter is complete. Only files that git
tracks or does not ignore take part, so that leftovers of earlier builds cannot get into a wheel.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = (ROOT / "VERSION").read_text().strip()
SOURCES = {
    "chatrpc-protos": ("protos/python", ["."]),
    "chatrpc-server": (".", ["pyproject.toml", "README.md", "LICENSE", "service"]),
    "chatrpc-client": ("clients/python", ["."]),
}
"""Distribution to its folder, and the files and folders in it that belong to it."""

IMAGE_PROGRAMS = ("buildah", "podman", "runc", "debootstrap")


def output(*command: str, cwd: Path = ROOT) -> str:
    """Run a command to its end and return its standard output."""
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()  # noqa: S603


def build(kind: str, project: Path, folder: Path) -> Path:
    """Call one hook of setuptools (PEP 517) in the environment of this program; return the built file."""
    call = f"import setuptools.build_meta as hooks, sys; print(hooks.build_{kind}(sys.argv[1]))"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", call, str(folder)], cwd=project, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{project.name}: cannot build the {kind}:\n{done.stdout}{done.stderr}")
    return folder / done.stdout.splitlines()[-1]


def build_distribution(name: str, folder: Path, work: Path) -> list[Path]:
    """Build both files of one distribution."""
    home, members = SOURCES[name]
    copy = work / "copy" / name
    files = output("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *members, cwd=ROOT / home)
    for file in files.splitlines():
        if (source := ROOT / home / file).is_file():  # git lists a file that was deleted and not yet committed
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy / file)
    sdist = build("sdist", copy, folder)
    shutil.unpack_archive(sdist, work)  # without a filter, because Python 3.11.0 to 3.11.3 have none
    return [sdist, build("wheel", work / sdist.name.removesuffix(".tar.gz"), folder)]


def build_image(folder: Path) -> None:
    """Save the image as an archive for `docker load`, or print in one line why it cannot be built here."""
    missing = [program for program in IMAGE_PROGRAMS if not shutil.which(program)]
    if missing and not (os.geteuid() == 0 and shutil.which("apt-get")):
        print(f"the image: not built; install {', '.join(missing)}, or run as root on Debian")
        return
    done = subprocess.run([ROOT / "tests/deploy/image/build"], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"the image: not built; {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    os.environ["CONTAINERS_STORAGE_CONF"] = done.stdout.splitlines()[0]
    archive = folder / f"chatrpc-{VERSION}-image.tar"
    output("podman", "tag", "localhost/chatrpc:test", f"localhost/chatrpc:{VERSION}")
    output("podman", "save", "--quiet", "--output", str(archive), f"localhost/chatrpc:{VERSION}")
    print(archive)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the files of a release.")
    parser.add_argument("--image", action="store_true", help="the image too, if it can be built here")
    parser.add_argument("folder", type=Path, help="where the files go; chatrpc* in it is removed first")
    arguments = parser.parse_args()

    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("chatrpc*"):
        old.unlink()
    os.environ.setdefault("SOURCE_DATE_EPOCH", output("git", "log", "-1", "--format=%ct"))  # so that wheels are alike
    with tempfile.TemporaryDirectory(prefix="chatrpc-build-") as work:
        for name in SOURCES:
            print(*build_distribution(name, folder, Path(work)), sep="\n")
    if arguments.image:
        build_image(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
