"""httpx's own transport, made to leave no connection behind when it is cancelled.

An expired deadline cancels a call twice: gRPC does, and our own timeout. httpcore cleans up after the first one, is hit
by the second while it does so, and keeps the connection. So each step is a task of its own that is cancelled once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import httpx

_T = TypeVar("_T")


class HttpcoreTransport(httpx.AsyncHTTPTransport):
    """What it gives is closed even while the call is being cancelled, however often."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx says."""
        sending = asyncio.ensure_future(super().handle_async_request(request))
        response = await _cancelled_once(sending, drop=_close)
        response.stream = _Body(response.stream)
        return response

    def connections(self) -> tuple[int, int]:
        """How many there are: in use, and idle."""
        connections = self._pool.connections
        idle = sum(connection.is_idle() for connection in connections)
        return len(connections) - idle, idle


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reads = aiter(self._stream)
        while (data := await _cancelled_once(asyncio.ensure_future(anext(reads, None)))) is not None:
            yield data

    async def aclose(self) -> None:
        await asyncio.shield(asyncio.ensure_future(self._stream.aclose()))


async def _close(response: httpx.Response) -> None:
    await _Body(response.stream).aclose()


async def _cancelled_once(task: asyncio.Future[_T], drop: Callable[[_T], Awaitable[None]] | None = None) -> _T:
    """The task's result. A cancel is passed on and waits for the end; a result that came all the same is dropped."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if drop is not None and not task.cancelled() and task.exception() is None:
            await drop(task.result())
        raise
