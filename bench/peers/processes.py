"""Servers as separate processes, and their figures from the kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Start = Callable[[int, int, Path], tuple[list[str], dict[str, str]]]
"""Own port, the upstream's port and a folder for files to the command and its environment."""


@dataclass(frozen=True)
class Server:
    """A server: how to start it and how to call it."""

    name: str
    kind: str
    protocol: str
    """`grpc` or `http`."""
    path: str
    """Path of the chat endpoint; for gRPC of the service."""
    start: Start
    headers: Mapping[str, str] = field(default_factory=dict)
    streams: bool = True
    has_upstream: bool = True
    slow: bool = False
    """Gets a smaller load, because the full one would take minutes."""


class Running:
    """A running server with its child processes."""

    def __init__(self, server: Server, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.server, self._process, self.port, self._log = server, process, port, log

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])

    def cpu_seconds(self) -> float:
        """Return the CPU of all its threads so far, from the kernel's scheduler."""
        nanoseconds = 0
        for pid in self._pids():
            for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    nanoseconds += int(thread.read_text().split()[0])
        return nanoseconds / 1e9

    def resident_mib(self) -> float:
        """Return its memory; pages that its processes share count once."""
        kib = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kib / 1024

    def pause(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _pids(self) -> Iterator[int]:
        waiting = [self._process.pid]
        while waiting:
            pid = waiting.pop()
            yield pid
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    waiting += map(int, children.read_text().split())


def start(server: Server, upstream_port: int, folder: Path) -> Running:
    """Start the server; the caller must wait until it responds."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command, environment = server.start(port, upstream_port, folder)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
    return Running(server, process, port, log)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
