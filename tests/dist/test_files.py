"""The contents of wheels and source distributions, and the licence in the packages of other languages."""

import json
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIST = Path(os.environ["DIST"])
VERSION = (ROOT / "VERSION").read_text().strip()
LICENCE = (ROOT / "LICENSE").read_text()
NAMES = ["chatrpc_client", "chatrpc_protos", "chatrpc_server"]


def wheel(name: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(DIST / f"{name}-{VERSION}-py3-none-any.whl")


def test_each_distribution_has_both_forms() -> None:
    forms = [(f"{name}-{VERSION}-py3-none-any.whl", f"{name}-{VERSION}.tar.gz") for name in NAMES]
    assert sorted(path.name for path in DIST.iterdir()) == sorted(file for both in forms for file in both)


@pytest.mark.parametrize("name", NAMES)
def test_licence(name: str) -> None:
    assert wheel(name).read(f"{name}-{VERSION}.dist-info/licenses/LICENSE").decode() == LICENCE
    with tarfile.open(DIST / f"{name}-{VERSION}.tar.gz") as sdist:
        member = sdist.extractfile(f"{name}-{VERSION}/LICENSE")
        assert member
        assert member.read().decode() == LICENCE


@pytest.mark.parametrize("name", NAMES)
def test_metadata(name: str) -> None:
    metadata = message_from_string(wheel(name).read(f"{name}-{VERSION}.dist-info/METADATA").decode())
    assert metadata["Version"] == VERSION
    assert metadata["License-Expression"] == "Apache-2.0"
    requirements = metadata.get_all("Requires-Dist", [])
    assert (f"chatrpc-protos>={VERSION}" in requirements) == (name != "chatrpc_protos")
    always = {re.split(r"[^\w-]", each)[0] for each in requirements if "extra ==" not in each}
    assert "aiohttp" not in always


def test_no_file_is_in_two_wheels() -> None:
    files = [file for name in NAMES for file in wheel(name).namelist()]
    assert len(files) == len(set(files))


def test_packages_of_each_wheel() -> None:
    packages = {
        name: {file.split("/")[0] for file in wheel(name).namelist() if ".dist-info/" not in file} for name in NAMES
    }
    assert packages == {
        "chatrpc_client": {"chatrpc_cli", "chatrpc_client"},
        "chatrpc_protos": {"chatrpc"},
        "chatrpc_server": {"chatrpc_echo", "chatrpc_server"},
    }


def test_types_of_the_contract() -> None:
    files = set(wheel("chatrpc_protos").namelist())
    assert "chatrpc/v1/py.typed" in files
    modules = [file for file in files if file.endswith("_pb2.py") or file.endswith("_pb2_grpc.py")]
    assert modules
    assert {f"{module}i" for module in modules} <= files


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
def test_licence_in_the_npm_package() -> None:
    command = ["npm", "pack", "--dry-run", "--json", "--offline"]
    done = subprocess.run(command, cwd=ROOT / "clients/typescript", check=True, stdout=subprocess.PIPE, text=True)
    packed = json.loads(done.stdout)
    (package,) = packed if isinstance(packed, list) else packed.values()
    assert package["version"] == VERSION
    assert "LICENSE" in [file["path"] for file in package["files"]]


@pytest.mark.skipif(not shutil.which("cargo"), reason="cargo is not installed")
def test_licence_in_the_crate() -> None:
    command = ["cargo", "package", "--list", "--allow-dirty", "--quiet"]
    done = subprocess.run(command, cwd=ROOT / "clients/rust", check=True, stdout=subprocess.PIPE, text=True)
    assert "LICENSE" in done.stdout.splitlines()


def test_licence_in_the_jar() -> None:
    """Read the build file, because a build takes a minute."""
    resource = re.search(r"<resource>.*?</resource>", (ROOT / "clients/java/pom.xml").read_text(), re.DOTALL)
    assert resource
    assert "<include>LICENSE</include>" in resource[0]
    assert "<targetPath>META-INF</targetPath>" in resource[0]
