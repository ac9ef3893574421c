#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the Python stubs of the contract.

    python protos/generate.py            write files that differ, remove superfluous ones
    python protos/generate.py --check    write nothing; exit 1 and list stale, missing and superfluous files

It runs on any Python from 3.11 on without installed packages. It creates .venv-protos/ for the generators from the
hashes in requirements/protos.txt, and recreates it when that lock changes. The generators have their own environment
because they are pinned to the oldest supported grpcio: its stubs load on every later version, but not the reverse.

The folder holds only generated files and no __init__.py, so that `chatrpc` is a namespace package.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
FOLDER = PROTOS / "python/src/chatrpc/v1"
"""The package of the distribution `chatrpc-protos`, on which the service and the client depend."""
LOCK = ROOT / "requirements/protos.txt"
VENV = ROOT / ".venv-protos"

STUB_OPTIONS = "quiet,readable_stubs"
"""Options of mypy-protobuf, without `only_async`, because synchronous clients use the stubs too."""


def run(programs: Path, module: str, *arguments: str) -> None:
    search_path = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"  # so that protoc finds its plugins
    command = [str(programs / "python"), "-m", module, *arguments]
    subprocess.run(command, check=True, env={**os.environ, "PATH": search_path})  # noqa: S603 - no part comes from outside


def generators() -> Path:
    """Return the folder of the generators' programs; install them if they are missing, incomplete or outdated."""
    programs = VENV / ("Scripts" if os.name == "nt" else "bin")
    stamp = VENV / "lock.sha256"
    lock = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != lock:
        print(f"installing the stub generators into {VENV.name}/ ...", flush=True)
        venv.create(VENV, clear=True, with_pip=True)
        run(programs, "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", str(LOCK))
        stamp.write_text(lock)
    return programs


def generate(out: Path) -> dict[str, bytes]:
    """Return the content of every generated file by its name. `out` is an empty scratch folder."""
    programs = generators()
    protos = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.glob("chatrpc/v1/*.proto"))
    services = [proto for proto in protos if proto.endswith("_service.proto")]
    protoc = ("grpc_tools.protoc", f"-I{PROTOS}")
    run(programs, *protoc, f"--python_out={out}", f"--mypy_out={STUB_OPTIONS}:{out}", *protos)
    run(programs, *protoc, f"--grpc_python_out={out}", f"--mypy_grpc_out={STUB_OPTIONS}:{out}", *services)
    stubs = {path.name: path.read_bytes() for path in (out / "chatrpc/v1").iterdir()}
    return {**stubs, "py.typed": b""}  # PEP 561: type checkers may trust the installed package


def _update(fresh: dict[str, bytes], *, check: bool) -> list[str]:
    """Return a line for each file that differs; update the folder unless `check`."""
    present = {path.name: path.read_bytes() for path in FOLDER.glob("*") if path.is_file()}
    faults = {
        **dict.fromkeys(fresh.keys() - present.keys(), "missing"),
        **dict.fromkeys(present.keys() - fresh.keys(), "superfluous"),
        **{name: "stale" for name in fresh.keys() & present.keys() if fresh[name] != present[name]},
    }
    if not check:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name in faults:
            (FOLDER / name).write_bytes(fresh[name]) if name in fresh else (FOLDER / name).unlink()
    return [f"{fault}: {(FOLDER / name).relative_to(ROOT)}" for name, fault in sorted(faults.items())]


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the Python stubs of the contract.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 unless the stubs are fresh")
    check = parser.parse_args().check

    try:
        with tempfile.TemporaryDirectory() as out:
            fresh = generate(Path(out))
    except subprocess.CalledProcessError as error:  # the program has printed the reason
        return error.returncode
    stale = _update(fresh, check=check)
    print(*stale, sep="\n", end="\n" if stale else "")
    if check and stale:
        print("protos/python: stale stubs; run `make protos`", file=sys.stderr)
        return 1
    print(f"{FOLDER.relative_to(ROOT)}: {len(fresh)} files are fresh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
