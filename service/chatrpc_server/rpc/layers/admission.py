"""Layer: limits the number of calls and of message bytes in flight, and enforces deadlines.

It does not use grpc's `maximum_concurrent_rpcs`, because that also rejects health checks: a busy process would fail its
liveness probe and be restarted.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from chatrpc_server.core.budget import ByteBudget
from chatrpc_server.core.call import Call
from chatrpc_server.core.errors import DeadlineExceeded, Draining, Overloaded
from chatrpc_server.rpc.pipeline import Context

_RETRY_AFTER_SECONDS = 1.0


class Admission:
    """The layer that admits calls. `count_rejected` receives the reason of each rejection, such as `in_flight`.

    `make_room` is called if there are too many calls; it can fail one whose request has not arrived, and return True.
    """

    def __init__(
        self,
        max_in_flight: int,
        budget: ByteBudget,
        min_deadline_seconds: float,
        count_rejected: Callable[[str], None],
        make_room: Callable[[], bool],
    ) -> None:
        self._max_in_flight = max_in_flight
        self._budget = budget
        self._min_deadline_seconds = min_deadline_seconds
        self._count_rejected = count_rejected
        self._make_room = make_room
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    @property
    def in_flight(self) -> int:
        """The number of calls in flight."""
        return len(self._tasks)

    @asynccontextmanager
    async def __call__(self, call: Call, context: Context) -> AsyncIterator[None]:
        """Admit the call and enforce its deadline. Raises `Overloaded` or `DeadlineExceeded`."""
        self._admit(call)
        call.budget = self._budget
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            async with asyncio.timeout_at(call.deadline) as deadline:
                yield
        except TimeoutError:
            if deadline.expired():
                raise DeadlineExceeded(f"the deadline expired before {_unfinished(call)}") from None
            raise
        except Overloaded as error:
            self._count_rejected(error.limit)
            raise
        except asyncio.CancelledError:
            if not task.cancelling():
                # Another error, because grpc would treat the RPC as cancelled and send the caller no status.
                raise RuntimeError("cancelled from within the call") from None
            if self._draining:
                task.uncancel()
                raise Draining("the server is draining", retry_after_seconds=_RETRY_AFTER_SECONDS) from None
            raise
        finally:
            self._tasks.discard(task)
            self._budget.give(call.held_bytes)

    def _admit(self, call: Call) -> None:
        if len(self._tasks) >= self._max_in_flight and not self._make_room():
            self._count_rejected("in_flight")
            raise Overloaded(f"the limit of {self._max_in_flight} calls in flight is reached")
        remaining = call.deadline - asyncio.get_running_loop().time()
        if remaining < self._min_deadline_seconds:
            self._count_rejected("deadline")
            raise DeadlineExceeded(f"{max(0.0, remaining) * 1000:.0f} ms left: too short for a call to the upstream")

    def cancel_calls(self) -> None:
        """Cancel all calls in flight with `Draining`."""
        self._draining = True
        for task in self._tasks:
            task.cancel()


def _unfinished(call: Call) -> str:
    """Return the part of a call that its deadline has cut off."""
    if not call.messages_received:
        return "the request had arrived"
    if call.first_message_at is not None and not call.messages_sent:
        return "the caller had read the response"
    return "the upstream's response was complete"
