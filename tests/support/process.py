"""Real processes of the command line, started and ended by the tests."""

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
SECONDS = 20.0


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=SECONDS, env=os.environ | environ, check=False
    )


class Process:
    """A command that goes on, with what it writes, line by line."""

    def __init__(self, *arguments: str, command: Sequence[str] = COMMAND, **environ: str) -> None:
        """A session leader, as a shell's foreground job is: `os.killpg` reaches all that it starts, like Ctrl-C."""
        self.lines: list[str] = []
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
        """The next line that has this text."""
        while (line := self._queue.get(timeout=SECONDS)) is not None:
            self.lines.append(line)
            if having in line:
                return line
        raise AssertionError(f"no line with {having!r} in:\n" + "\n".join(self.lines))

    def log(self, event: str) -> dict[str, Any]:
        """The next log line of this event."""
        fields: dict[str, Any] = json.loads(self.line(f'"event":"{event}"'))
        return fields

    def written(self) -> list[str]:
        """All lines so far of a process that goes on."""
        while not self._queue.empty():
            self.lines.append(str(self._queue.get()))
        return self.lines

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends a signal."""
        self.popen.send_signal(number)

    def wait(self) -> int:
        """The exit code, once it has ended."""
        code = self.popen.wait(timeout=SECONDS)
        self._reader.join(timeout=SECONDS)
        while (line := self._queue.get(timeout=SECONDS)) is not None:
            self.lines.append(line)
        return code

    @property
    def output(self) -> str:
        """All that was read of what it wrote."""
        return "\n".join(self.lines)


@contextmanager
def running(*arguments: str, command: Sequence[str] = COMMAND, **environ: str) -> Iterator[Process]:
    """The command, ours unless told otherwise, killed on leaving if it has not ended by then."""
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
