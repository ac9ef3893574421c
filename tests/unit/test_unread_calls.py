"""The end of calls whose caller does not read; its effect on memory is tested in robustness/hostile/test_unread.py."""

import asyncio
from typing import Any

import pytest

from chatrpc_server.rpc.unread import UnreadCalls


class _Variables:
    """What a coroutine of Cython refers to in place of its variables."""

    def __init__(self, handler: "asyncio.Task[Any]") -> None:
        self.handler = handler


@pytest.mark.parametrize("disconnected", [False, True])
async def test_a_call_ends_without_an_error(disconnected: bool) -> None:
    """If the caller has disconnected, gRPC's task waits for the handler only, and a cancellation of it is logged."""
    unread, started, closed, steps = UnreadCalls(), asyncio.Event(), asyncio.Event(), []

    async def handle() -> None:
        await started.wait()
        unread.end_current()

    async def _schedule_rpc_coro(variables: _Variables) -> None:
        if not disconnected:
            started.set()
            await closed.wait()
        try:
            await variables.handler
            steps.append("ended")
        except asyncio.CancelledError:
            steps.append("cancelled")

    task = asyncio.create_task(_schedule_rpc_coro(_Variables(asyncio.create_task(handle()))))
    await asyncio.sleep(0)
    started.set()
    await asyncio.wait({task}, timeout=30)
    assert task.done()
    assert (task.cancelled(), steps) == ((False, ["ended"]) if disconnected else (True, []))
