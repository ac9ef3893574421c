"""Processes of the command line that the tests start and stop."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Queue
from typing import Any

COMMAND = [sys.executable, "-m", "chatrpc_server"]
ANY_PORTS = ["--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--drain.delay-seconds=0"]
SECONDS = 60.0
"""Limit of each wait. Only for hangs: a start takes tens of seconds on a loaded machine."""


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command until it exits."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=SECONDS, env=os.environ | environ, check=False
    )


class Process:
    """A running command and its output, line by line."""

    def __init__(self, *arguments: str, command: Sequence[str] = COMMAND, **environ: str) -> None:
        """Start a session leader, like a shell's foreground job: `os.killpg` reaches its children too, like Ctrl-C."""
        self.lines: list[str] = []
        self._skipped: list[str] = []
        self._queue: Queue[str | None] = Queue()
        self.popen = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | environ,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout
        for line in self.popen.stdout:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def line(self, having: str) -> str:
        """Return the next line that has this text."""
        while (line := self._queue.get(timeout=SECONDS)) is not None:
            self.lines.append(line)
            if having in line:
                return line
            self._skipped.append(line)
        raise AssertionError(f"no line with {having!r} in:\n" + "\n".join(self.lines))

    def log(self, event: str) -> dict[str, Any]:
        """Return the next log line of this event. Lines of other events before it remain for later calls.

        Several processes write their lines in any order, because each has a thread that writes them.
        """
        having = f'"event":"{event}"'
        line = next((line for line in self._skipped if having in line), None)
        if line:
            self._skipped.remove(line)
        fields: dict[str, Any] = json.loads(line or self.line(having))
        return fields

    def written(self) -> list[str]:
        """Return all lines so far of a running process."""
        while not self._queue.empty():
            self.lines.append(str(self._queue.get()))
            self._skipped.append(self.lines[-1])
        return self.lines

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal."""
        self.popen.send_signal(number)

    def wait(self) -> int:
        """Wait for the exit; return the exit code."""
        code = self.popen.wait(timeout=SECONDS)
        self._reader.join(timeout=SECONDS)
        while (line := self._queue.get(timeout=SECONDS)) is not None:
            self.lines.append(line)
        return code

    @property
    def output(self) -> str:
        """The output that has been read so far."""
        return "\n".join(self.lines)


@contextmanager
def running(*arguments: str, command: Sequence[str] = COMMAND, **environ: str) -> Iterator[Process]:
    """A running command, by default ours; killed on exit of the context if it still runs."""
    process = Process(*arguments, command=command, **environ)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.popen.pid, signal.SIGKILL)  # with its workers, if it has any
        process.popen.wait()
        assert process.popen.stdout
        process._reader.join()
        process.popen.stdout.close()
