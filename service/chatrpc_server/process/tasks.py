"""Runs asyncio tasks beside each other and beside the service."""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

log = logging.getLogger("chatrpc.server")


async def first(*waits: Awaitable[object]) -> None:
    """Run until one returns, then cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def run_in_background(stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run an endless task until the stack is closed; log it if it fails."""
    task = asyncio.create_task(work)

    def on_done(_: object) -> None:
        if not task.cancelled():
            log.error(
                "background task stopped unexpectedly",
                extra={"event": "background_task_failed"},
                exc_info=task.exception(),
            )

    async def stop() -> None:
        task.cancel()
        await asyncio.wait({task})

    task.add_done_callback(on_done)
    stack.push_async_callback(stop)
