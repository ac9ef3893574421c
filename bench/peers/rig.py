"""The driver of the rig, a Go program: see rig/main.go."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from processes import Running, Server

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).parent / "rig"
BINARY = ROOT / ".tools/bin/rig"


def build() -> None:
    """Build the rig if a source is newer. Exits if Go is missing."""
    sources = [*SOURCE.glob("*.go"), *SOURCE.glob("go.*")]
    if BINARY.exists() and BINARY.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return
    if not shutil.which("go"):
        sys.exit("Go 1.23 or newer is needed to build bench/peers/rig: it is not installed (go.dev/dl)")
    print("Building the rig (once) ...", file=sys.stderr)
    BINARY.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["go", "build", "-o", BINARY, "."], cwd=SOURCE, check=True)


class Rig:
    """A running rig. Its upstream listens on `port`."""

    def __enter__(self) -> Rig:
        self._process = subprocess.Popen([BINARY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self._answer()["port"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def __call__(self, op: str, target: Running | None = None, **fields: Any) -> dict[str, Any]:
        """Send one command and wait for the response. Without a target the rig calls its own upstream."""
        command = {"op": op, "peer": self._peer(target), **fields}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise RigError(answer["error"])
        return answer

    def _peer(self, target: Running | None) -> dict[str, Any]:
        if target is None:
            return {"protocol": "http", "path": "/v1/chat/completions", "address": f"127.0.0.1:{self.port}"}
        server: Server = target.server
        address = f"127.0.0.1:{target.port}"
        return {"protocol": server.protocol, "path": server.path, "address": address, "headers": dict(server.headers)}

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RigError("the rig has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


class RigError(Exception):
    """A command that the rig could not carry out."""
