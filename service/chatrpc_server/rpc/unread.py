"""Ends calls whose caller does not read, so that their messages leave the memory.

grpc.aio cannot cancel a call from the server. It does so only if it drops its last reference to the call, which the
task around the handler's task holds until the caller has received the status. So this module cancels that task.
"""

import asyncio
import gc
from typing import Any

_OUTER = "_schedule_rpc_coro"
"""The coroutine in grpc.aio that waits for the end of a call. If it has another name, calls stay until they are read or
their connection closes; a test fails then."""


class UnreadCalls:
    """Ends calls that cannot send their status."""

    def __init__(self) -> None:
        self._handlers: set[asyncio.Task[Any]] = set()

    def end_current(self) -> None:
        """End the call whose handler is the current task, soon after the task has ended."""
        handler = asyncio.current_task()
        assert handler is not None
        if not self._handlers:
            # Together, because all tasks are searched: a few milliseconds for some thousand. In the turn after next:
            # if the caller has disconnected, gRPC's task ends in the next one, and a cancellation would be logged.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._end)
        self._handlers.add(handler)

    def _end(self) -> None:
        handlers, self._handlers = self._handlers, set()
        for task in asyncio.all_tasks():
            if getattr(task.get_coro(), "__name__", "") == _OUTER and not handlers.isdisjoint(_variables(task)):
                task.cancel()


def _variables(task: asyncio.Task[Any]) -> set[Any]:
    """Return the tasks among the local variables of a Cython coroutine, which are in its closure."""
    closures = gc.get_referents(task.get_coro())
    return {each for each in gc.get_referents(*closures) if isinstance(each, asyncio.Task)}
