#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the Python stubs of the contract; --check only proves them fresh.

    python protos/generate.py            write what differs, remove what does not belong
    python protos/generate.py --check    write nothing; exit 1 and list what is stale, missing or superfluous

Any Python from 3.11 on runs it, and nothing has to be installed first: the generators live in .venv-protos/, made here
from the hashes in requirements/protos.txt, and made anew when that lock changes. They have an environment of their own
because they are pinned to the oldest grpcio supported: its stubs load on every later one, but not the other way round.

The folder holds generated files and nothing else, no __init__.py either, so that `chatrpc` is a namespace package.
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
"""Of the distribution `chatrpc-protos`, on which the service and the client depend."""
LOCK = ROOT / "requirements/protos.txt"
VENV = ROOT / ".venv-protos"

STUB_OPTIONS = "quiet,readable_stubs"
"""Of mypy-protobuf. No `only_async`: the stubs are for synchronous clients too."""


def run(programs: Path, module: str, *arguments: str) -> None:
    search_path = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"  # protoc looks for its plugins there
    command = [str(programs / "python"), "-m", module, *arguments]
    subprocess.run(command, check=True, env={**os.environ, "PATH": search_path})  # noqa: S603 - all of it is ours


def generators() -> Path:
    """The folder of the generators' programs. They are installed first if absent, half installed or not the lock's."""
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
    """The content of every generated file by its name. `out` is an empty folder to work in."""
    programs = generators()
    protos = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.glob("chatrpc/v1/*.proto"))
    services = [proto for proto in protos if proto.endswith("_service.proto")]
    protoc = ("grpc_tools.protoc", f"-I{PROTOS}")
    run(programs, *protoc, f"--python_out={out}", f"--mypy_out={STUB_OPTIONS}:{out}", *protos)
    run(programs, *protoc, f"--grpc_python_out={out}", f"--mypy_grpc_out={STUB_OPTIONS}:{out}", *services)
    stubs = {path.name: path.read_bytes() for path in (out / "chatrpc/v1").iterdir()}
    return {**stubs, "py.typed": b""}  # PEP 561: type checkers may trust the installed package


def _mend(fresh: dict[str, bytes], *, check: bool) -> list[str]:
    """What was wrong there, file by file. With `check` it stays so."""
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
    except subprocess.CalledProcessError as error:  # it has said itself what is wrong
        return error.returncode
    stale = _mend(fresh, check=check)
    print(*stale, sep="\n", end="\n" if stale else "")
    if check and stale:
        print("The stubs do not match protos/. To mend that: python protos/generate.py", file=sys.stderr)
        return 1
    print(f"{FOLDER.relative_to(ROOT)}: {len(fresh)} files are fresh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
