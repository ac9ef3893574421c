"""Receives requests, with limits of time and of memory for half-sent ones.

gRPC's core buffers a message until it is complete and shows no bytes before that. So if the process allocates more than
the budget has left, each request that arrives slowly counts as the largest message, and their number is limited. In any
case they take at most half of the calls in flight.
"""

import asyncio

from chatrpc_server.core.budget import ByteBudget
from chatrpc_server.core.errors import ChatError, DeadlineExceeded, InvalidRequest, Overloaded
from chatrpc_server.process import memory
from chatrpc_server.rpc.completion import Completed
from chatrpc_server.rpc.pipeline import Context

_TICK_SECONDS = 0.05
_SLOW_TICKS = 2
"""A request is slow if it has been incomplete at so many ticks. A blocked loop delays ticks, so it makes none slow."""
_CANCEL_SECONDS = 0.1
"""Longest time from the end of the input to the cancellation, if the caller has cancelled."""


class Receiver:
    """Receives requests. If those that arrive slowly could exceed the budget, the oldest of these fail."""

    def __init__(
        self, budget: ByteBudget, *, timeout_seconds: float, max_message_bytes: int, max_in_flight: int
    ) -> None:
        self._budget = budget
        self._max_slow = max(1, max_in_flight // 2)
        self._timeout_seconds = timeout_seconds
        self._max_message_bytes = max_message_bytes
        self._pending: dict[asyncio.Timeout, int] = {}
        """The number of the tick before each request that is being received, oldest first."""
        self._tick = 0
        self._least_allocated = 0
        """The least memory allocated at a tick since the timer started. More than that can be half-sent requests."""
        self._timer: asyncio.TimerHandle | None = None

    async def only(self, context: Context) -> bytes:
        """Return the message of a call that has one. Raises `ChatError`."""
        data = await self.next(context)
        if data is None:
            # The input of a cancelled call ends too, just before the cancellation.
            await asyncio.sleep(_CANCEL_SECONDS)
            raise InvalidRequest("request", "is missing; send one message")
        return data

    async def next(self, context: Context) -> bytes | None:
        """Return the next message; None at the end. Raises `ChatError`."""
        timeout = asyncio.timeout(self._timeout_seconds)
        try:
            async with timeout:
                self._pending[timeout] = self._tick
                if self._timer is None and len(self._pending) > 1:
                    self._least_allocated = memory.allocated_bytes()
                    self._start_timer()
                data = await Completed(context.read())
        except TimeoutError:
            raise self._error(refused=timeout not in self._pending) from None
        finally:
            self._pending.pop(timeout, None)
        return data if isinstance(data, bytes) else None

    def _error(self, *, refused: bool) -> ChatError:
        if refused:
            return Overloaded(
                "too many requests arrive slowly: they fill limits.max_bytes_in_flight or half of limits.max_in_flight;"
                " retry later",
                limit="receiving",
            )
        seconds = f"{self._timeout_seconds:g} s"
        return DeadlineExceeded(f"the request did not arrive within limits.receive_timeout_seconds, which is {seconds}")

    def _slow_limit(self) -> int:
        return max(1, min(self._max_slow, self._budget.free_bytes // self._max_message_bytes))

    def _exceeds_budget(self) -> bool:
        """Return whether more memory was allocated than the budget has left: by requests, or by other work."""
        allocated = memory.allocated_bytes()
        self._least_allocated = min(self._least_allocated, allocated)
        return allocated - self._least_allocated > self._budget.free_bytes

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._on_tick)

    def _on_tick(self) -> None:
        self._tick += 1
        slow = [timeout for timeout, tick in self._pending.items() if self._tick - tick > _SLOW_TICKS]
        limit = self._slow_limit() if self._exceeds_budget() else self._max_slow
        now = asyncio.get_running_loop().time()
        for timeout in slow[:-limit]:
            del self._pending[timeout]
            timeout.reschedule(now)
        self._timer = None
        if len(self._pending) > 1:
            self._start_timer()
