"""How long a stream may keep us waiting: what asyncio.timeout does, with one timer for all the waits of a stream.

A timeout around each read costs 6 µs a chunk; a wait that ends in time costs a look at the clock here. And it spans
the turns of a generator: while that is suspended, nothing must be cancelled, for it would be the caller's work.
"""

import asyncio
import math
from types import TracebackType

from chatrpc_server.core.errors import TimedOut


class IdleTimeout:
    """As a context: raises `TimedOut` in it when a wait has been too long. `message` has a place for the seconds."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._seconds = 0.0
        self._until = self._rings_at = math.inf
        self._over = False

    def wait(self, seconds: float) -> None:
        """From now on something is waited for, so long at the most."""
        self._seconds, self._until = seconds, self._loop.time() + seconds
        if self._until < self._rings_at:
            self._set()

    def rest(self) -> None:
        """From now on nothing is."""
        self._until = math.inf

    async def __aenter__(self) -> "IdleTimeout":
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.rest()
        if self._timer:
            self._timer.cancel()
        if self._over and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimedOut(self._message.format(self._seconds)) from None

    def _set(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._rings_at = self._until
        self._timer = self._loop.call_at(self._until, self._rings)

    def _rings(self) -> None:
        self._timer, self._rings_at = None, math.inf
        if self._loop.time() >= self._until:
            self._over = True
            self._task.cancel()
        elif self._until < math.inf:
            self._set()
