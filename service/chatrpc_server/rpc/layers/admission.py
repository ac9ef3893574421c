"""Layer: how many calls at once, and how long each may take.

The count is our own: grpc's `maximum_concurrent_rpcs` would turn away health checks too, and get the process restarted
just when it is busiest.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from chatrpc_server.core.call import Call
from chatrpc_server.core.errors import DeadlineExceeded, Draining, Overloaded
from chatrpc_server.rpc.pipeline import Context

_RETRY_AFTER_SECONDS = 1.0


class Admission:
    """`rejected` is told the reason for each call that is turned away: `in_flight` or `deadline`."""

    def __init__(self, max_in_flight: int, min_deadline_seconds: float, rejected: Callable[[str], None]) -> None:
        self._max_in_flight = max_in_flight
        self._min_deadline_seconds = min_deadline_seconds
        self._rejected = rejected
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False

    @property
    def in_flight(self) -> int:
        """The calls being handled now."""
        return len(self._tasks)

    @asynccontextmanager
    async def __call__(self, call: Call, context: Context) -> AsyncIterator[None]:
        """Admits the call, or raises `Overloaded` or `DeadlineExceeded`; holds it to its deadline."""
        self._admit(call)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            async with asyncio.timeout_at(call.deadline) as deadline:
                yield
        except TimeoutError:
            if deadline.expired():
                raise DeadlineExceeded("the deadline passed before the upstream had answered completely") from None
            raise
        except asyncio.CancelledError:
            if not task.cancelling():
                # grpc would leave the caller waiting for an RPC that it believes to be cancelled.
                raise RuntimeError("a cancellation from within the call") from None
            if self._ended:
                task.uncancel()
                raise Draining("the server is draining", retry_after_seconds=_RETRY_AFTER_SECONDS) from None
            raise
        finally:
            self._tasks.discard(task)

    def _admit(self, call: Call) -> None:
        if len(self._tasks) >= self._max_in_flight:
            self._rejected("in_flight")
            raise Overloaded(
                f"this server handles {self._max_in_flight} calls at once and all are taken",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        remaining = call.deadline - asyncio.get_running_loop().time()
        if remaining < self._min_deadline_seconds:
            self._rejected("deadline")
            raise DeadlineExceeded(f"{max(0.0, remaining) * 1000:.0f} ms are left: too little to ask an upstream")

    def cancel_calls(self) -> None:
        """Ends what is in flight with `Draining`."""
        self._ended = True
        for task in self._tasks:
            task.cancel()
