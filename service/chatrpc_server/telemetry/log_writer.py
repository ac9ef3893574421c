"""Writes log lines to a descriptor in a thread of its own: a full pipe or disk never delays the service.

The logging thread formats its lines, because the cost is the same and a second busy thread would delay the event loop.
The writer's thread holds the GIL only to join finished lines. The backlog is bounded. If it is full, lines are dropped
and counted, and one line reports their number where they are missing.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

log = logging.getLogger("chatrpc.logs")

_BATCH_SECONDS = 0.02
"""Delay of a first line, so that one wake-up of the thread writes all lines of this time."""
_WRITE_BYTES = 4096
"""Longest write of several lines: POSIX's PIPE_BUF on Linux. Longer writes of several workers could mix their lines."""
_FINISH_SECONDS = 5.0
_STALL_SECONDS = 1.0
"""Limits of `finish`: in total, and without progress."""


class LogWriter(logging.Handler):
    """A handler that never blocks. `buffer_bytes`: size of the backlog."""

    def __init__(self, descriptor: int, buffer_bytes: int) -> None:
        super().__init__()
        self.is_terminal = os.isatty(descriptor)
        self._descriptor, self._buffer_bytes = descriptor, buffer_bytes
        # The handler's lock guards all of these. `logging` holds it during `emit`.
        self._lines: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._is_full = False
        self._missing_lines = 0
        self._uncounted_lines = 0
        self._count_dropped: Callable[[int], None] | None = None
        self._is_idle = True
        self._is_reporting = False
        # Only the thread uses these.
        self._is_broken = False
        self._line_is_torn = False
        self._work = threading.Semaphore(0)
        self._hurry = threading.Event()
        threading.Thread(target=self._run, name="log writer", daemon=True).start()

    def handle(self, record: logging.LogRecord) -> bool:
        """Add the record, then count dropped lines."""
        is_handled = super().handle(record)
        self._count()
        return bool(is_handled)

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line to the backlog, or drop it."""
        try:
            line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        except Exception:
            self._drop(1)  # not `handleError`, which would print the record's values
            return
        # Accept lines again only if half of the backlog is free, so that one report covers many dropped lines.
        if self._is_full and self._backlog_bytes <= self._buffer_bytes // 2:
            self._is_full = False
        if self._is_full or self._backlog_bytes + len(line) > self._buffer_bytes:
            self._is_full = True
            self._drop(1)
            return
        if self._has_report():
            self._report_missing()
        self._lines.append(line)
        self._backlog_bytes += len(line)
        if self._is_idle:
            self._is_idle = False
            self._work.release()

    def count_dropped(self, count: Callable[[int], None]) -> None:
        """Report dropped lines to this function, those of the past at once."""
        self._count_dropped = count
        self._count()

    def finish(self) -> None:
        """Write the backlog. A reader that has stopped delays this only shortly."""
        self._hurry.set()
        self._work.release()  # so that the thread reports missing lines also if it is idle
        end = time.monotonic() + _FINISH_SECONDS
        backlog, stalled = -1, end
        while (self._backlog_bytes or self._has_report()) and time.monotonic() < min(end, stalled):
            if backlog != self._backlog_bytes:
                backlog, stalled = self._backlog_bytes, time.monotonic() + _STALL_SECONDS
            time.sleep(0.001)

    def _has_report(self) -> bool:
        return bool(self._missing_lines) and not self._is_broken

    def _locked(self) -> threading.RLock:
        assert self.lock
        return self.lock

    def _drop(self, lines: int) -> None:
        self._missing_lines += lines
        self._uncounted_lines += lines

    def _count(self) -> None:
        # Not while the lock is held: a metric has a lock too, and garbage collection under that lock can log.
        if not self._uncounted_lines or not self._count_dropped or self._is_reporting:
            return
        with self._locked():
            lines, self._uncounted_lines = self._uncounted_lines, 0
        self._count_dropped(lines)

    def _report_missing(self) -> None:
        lines, self._missing_lines = self._missing_lines, 0
        self._is_reporting = True
        log.warning("log lines were dropped; read stderr faster", extra={"event": "log_lines_dropped", "lines": lines})
        self._is_reporting = False

    def _run(self) -> None:
        while True:
            self._work.acquire()
            self._hurry.wait(_BATCH_SECONDS)
            while lines := self._take():
                self._write(b"".join(lines))

    def _take(self) -> list[bytes]:
        """Return the oldest lines, at least one. If there are none, become idle."""
        taken: list[bytes] = []
        size = 0
        with self._locked():
            if not self._lines and self._has_report():
                self._report_missing()
            while self._lines and (not taken or size + len(self._lines[0]) <= _WRITE_BYTES):
                taken.append(self._lines.popleft())
                size += len(taken[-1])
            self._is_idle = not taken
        return taken

    def _write(self, data: bytes) -> None:
        text = b"\n" + data if self._line_is_torn else data
        rest = memoryview(text)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # another process has made the shared descriptor non-blocking
                    self._wait_writable()
        except OSError:  # the reader has gone, or the disk is full
            pass
        lost, written = data[max(0, len(data) - len(rest)) :], len(text) - len(rest)
        if written:
            self._line_is_torn = text[written - 1 : written] != b"\n"
        with self._locked():
            self._backlog_bytes -= len(data)
            self._is_broken = bool(lost)
            if lost:
                self._drop(lost.count(b"\n"))
        self._count()

    def _wait_writable(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.poll(_STALL_SECONDS * 1000)


def count_dropped(count: Callable[[int], None]) -> None:
    """Report the dropped lines of this process to `count`."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogWriter):
            handler.count_dropped(count)
