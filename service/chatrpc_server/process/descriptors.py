"""File descriptors of this process: their limit, and a reserve for health checks and metrics.

Calls take descriptors until none is left. Then the reserve is released, so that the process can accept connections for
health checks and metrics, also in gRPC's core. No call gets a descriptor until the reserve is complete again.
"""

import asyncio
import errno
import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Iterable

log = logging.getLogger(__name__)

RESERVED = 16
_OTHERS = 64
"""Descriptors for everything but calls: standard streams, event loop, listeners, files."""
_LOG_SECONDS = 10.0
"""Shortest time between two log lines about exhaustion."""
_PROBE_SECONDS = 1.0
_EXHAUSTED_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""Errors of a process or machine that has no descriptor or no memory for a connection."""


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS allows less than its hard limit
            return soft
    return limit()


def limit() -> int:
    """Return the soft limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


def needed(calls: int) -> int:
    """Return the limit that this number of concurrent calls requires: each has a connection to the upstream."""
    return calls + _OTHERS + RESERVED


def max_connections() -> int:
    """Return how many connections of callers can share the limit with those to the upstream."""
    return max(1, limit() // 2)


def max_probe_connections() -> int:
    """Return how many further connections there can be for health checks only."""
    return max(1, limit() // 4)


class Reserve:
    """Descriptors that are kept open until the process has no other one. All methods can be called in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[int] = []
        self._size = 0
        self._logged = -_LOG_SECONDS
        self._is_reported = False

    def hold(self) -> None:
        """Open the reserve, or as much of it as the limit allows."""
        with self._lock:
            self._size = min(RESERVED, limit() // 8)
            self._is_complete()

    def require(self) -> None:
        """Raise OSError unless a call can take a descriptor. Call it just before the descriptor is opened."""
        if len(self._held) == self._size:
            return
        with self._lock:
            if not self._is_complete():
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if self._is_reported:
            self._is_reported = False
            log.info("file descriptors are available again", extra={"event": "descriptors_available"})

    def release(self) -> None:
        """Close the reserve, because the process has no other descriptor."""
        with self._lock:
            self._close()
            now = time.monotonic()
            if now < self._logged + _LOG_SECONDS:
                return
            self._logged, self._is_reported = now, True
        log.error(
            "no file descriptor is left; rejecting calls; raise the limit of open files or lower limits.max_in_flight",
            extra={"event": "descriptors_exhausted", "limit": limit()},
        )

    def is_exhausted(self, errnos: Iterable[int | None]) -> bool:
        """Return whether these errors, or a probe, show that no descriptor is left; if so, release the reserve."""
        # The probe is for errors that hide their cause, such as a lookup that could not open a socket.
        if _EXHAUSTED_ERRNOS.isdisjoint(errnos) and _can_open():
            return False
        self.release()
        return True

    def accept(self, listener: socket.socket) -> tuple[socket.socket, object]:
        """Accept a connection, with a descriptor of the reserve if there is no other."""
        try:
            return listener.accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED_ERRNOS:
                raise
        self.release()
        return listener.accept()

    def _is_complete(self) -> bool:
        """Open what is missing; close all if that fails, because others need the descriptors."""
        try:
            while len(self._held) < self._size:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            self._close()
            return False
        return True

    def _close(self) -> None:
        while self._held:
            os.close(self._held.pop())


def _can_open() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


reserve = Reserve()
"""The only one, because descriptors belong to the process."""


async def watch() -> None:
    """Release the reserve if no descriptor is left: gRPC's core, which accepts connections, does not report that."""
    while True:
        await asyncio.sleep(_PROBE_SECONDS)
        reserve.is_exhausted([])
