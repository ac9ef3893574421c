"""Receives requests, with limits of time and of memory for half-sent ones.

gRPC's core buffers a message until it is complete and shows no bytes before that. So if the process allocates more than
the budget has left, each request that arrives slowly counts as the largest message, and their number is limited. In any
case they take at most half of the calls in flight.

A caller sends more than a window of a message only while gRPC reads it. So if requests arrive fast, no more of them are
read at once than fit into the budget as largest messages. The others wait; if memory stays, a few start at each look.
"""

import asyncio
from collections import deque

from chatrpc_server.core.budget import ByteBudget
from chatrpc_server.core.errors import ChatError, DeadlineExceeded, InvalidRequest, Overloaded
from chatrpc_server.process import memory
from chatrpc_server.rpc.completion import Completed
from chatrpc_server.rpc.pipeline import Context

_TICK_SECONDS = 0.05
_SLOW_TICKS = 2
"""A request is slow if it has been incomplete at so many ticks. A blocked loop delays ticks, so it makes none slow."""
_TURN_SECONDS = 0.01
"""Time between two looks at the memory while requests wait to be read."""
_FILL_SECONDS = 0.5
"""Requests arrive fast if they would fill the budget within this time, because a slow one is found too late then."""
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
        self._waiting: deque[asyncio.Future[None]] = deque()
        """The requests that wait to be read, oldest first."""
        self._last_allocated = 0
        """The memory allocated at the last look while requests waited."""
        self._last_look = 0.0
        self._look_timer: asyncio.TimerHandle | None = None

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
                if self._pending and self._must_wait():
                    await self._turn()
                self._pending[timeout] = self._tick
                if self._timer is None and len(self._pending) > 1:
                    self._begin_ticks()
                data = await Completed(context.read())
        except TimeoutError:
            raise self._error(refused=timeout not in self._pending) from None
        finally:
            self._pending.pop(timeout, None)
            if self._waiting:
                self._start(self._slow_limit() - self._active())
        return data if isinstance(data, bytes) else None

    def make_room(self) -> bool:
        """Fail the oldest request that arrives slowly, for a new call. Return False if there is none."""
        oldest = next(iter(self._pending), None)
        now = asyncio.get_running_loop().time()
        if oldest is None or (oldest.when() or 0) - now > self._timeout_seconds - _SLOW_TICKS * _TICK_SECONDS:
            return False
        self._refuse(oldest, now)
        return True

    def _refuse(self, timeout: asyncio.Timeout, now: float) -> None:
        del self._pending[timeout]
        timeout.reschedule(now)

    def _error(self, *, refused: bool) -> ChatError:
        if refused:
            return Overloaded(
                "too many requests arrive slowly: they fill limits.max_bytes_in_flight or limits.max_in_flight;"
                " retry later",
                limit="receiving",
            )
        seconds = f"{self._timeout_seconds:g} s"
        return DeadlineExceeded(f"the request did not arrive within limits.receive_timeout_seconds, which is {seconds}")

    def _must_wait(self) -> bool:
        limit = self._slow_limit()
        return bool(self._waiting) or (len(self._pending) >= limit and self._active() >= limit)

    def _active(self) -> int:
        """Return the number of requests that are read and are not slow."""
        return sum(self._tick - tick <= _SLOW_TICKS for tick in self._pending.values())

    async def _turn(self) -> None:
        """Wait until the request can be read."""
        loop = asyncio.get_running_loop()
        if self._look_timer is None:
            self._last_allocated, self._last_look = memory.allocated_bytes(), loop.time()
            self._look_timer = loop.call_later(_TURN_SECONDS, self._look)
        if self._timer is None:
            self._begin_ticks()
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _start(self, count: int) -> None:
        """Start to read requests that wait."""
        while self._waiting and (count > 0 or self._waiting[0].done()):
            turn = self._waiting.popleft()
            if not turn.done():  # its call can be cancelled
                turn.set_result(None)
                count -= 1

    def _look(self) -> None:
        """Let further requests start. If requests arrive fast, only as many as fit into the budget."""
        loop = asyncio.get_running_loop()
        allocated, now = memory.allocated_bytes(), loop.time()
        rate = (allocated - self._last_allocated) / max(now - self._last_look, _TURN_SECONDS)
        self._last_allocated, self._last_look = allocated, now
        limit, free = self._slow_limit(), self._budget.free_bytes
        is_fast = rate * _FILL_SECONDS > free or self._grown_bytes() > free // 4
        self._start(limit - self._active() if is_fast else max(1, limit // 3))
        self._look_timer = loop.call_later(_TURN_SECONDS, self._look) if self._waiting else None

    def _slow_limit(self) -> int:
        return max(1, min(self._max_slow, self._budget.free_bytes // self._max_message_bytes))

    def _grown_bytes(self) -> int:
        """Return how much more memory is allocated than at the least: by requests, or by other work."""
        allocated = memory.allocated_bytes()
        self._least_allocated = min(self._least_allocated, allocated)
        return allocated - self._least_allocated

    def _begin_ticks(self) -> None:
        self._least_allocated = memory.allocated_bytes()
        self._start_timer()

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._on_tick)

    def _on_tick(self) -> None:
        self._tick += 1
        slow = [timeout for timeout, tick in self._pending.items() if self._tick - tick > _SLOW_TICKS]
        limit = self._slow_limit() if self._grown_bytes() > self._budget.free_bytes else self._max_slow
        now = asyncio.get_running_loop().time()
        for timeout in slow[:-limit]:
            self._refuse(timeout, now)
        self._timer = None
        if len(self._pending) > 1 or self._waiting:
            self._start_timer()
