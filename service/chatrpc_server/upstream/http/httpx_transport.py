"""httpx's own transport, made to leave no connection behind when it is cancelled.

httpcore keeps a connection for ever in two cases. It is cancelled once more while it cleans up, as an expired deadline
does: gRPC cancels the call, and so does our own timeout. Or it is cancelled as it connects and has just done so: the
connection is neither idle nor in use then. So each step is a task of its own, which is cancelled once, and not before
it sends.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import httpx

from chatrpc_server.core.call import Headers

_T = TypeVar("_T")


class HttpxTransport(httpx.AsyncHTTPTransport):
    """What it gives is closed even while the call is being cancelled, however often."""

    def __init__(
        self,
        url: httpx.URL,
        headers: Headers,
        tls: ssl.SSLContext | None,
        proxy: str | None,
        connect_timeout_seconds: float,
    ) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=15)
        super().__init__(verify=tls or True, trust_env=False, limits=limits, proxy=proxy)
        self._url, self._headers = url, list(headers)
        self._extensions = {"timeout": {"connect": connect_timeout_seconds}}
        self._abandoned: set[asyncio.Task[None]] = set()

    async def post(self, body: bytes, headers: Headers) -> "_Answer":
        """See `Transport`."""
        request = httpx.Request(
            "POST", self._url, headers=[*self._headers, *headers], content=body, extensions=dict(self._extensions)
        )
        return _Answer(await self.handle_async_request(request))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx says."""
        sends = asyncio.Event()

        async def trace(event: str, _: object) -> None:
            """Told of each step: connecting is one like `connection.connect_tcp.started`, sending is none of those."""
            if event.startswith("connection."):
                sends.clear()
            else:
                sends.set()

        async def abandon(sending: asyncio.Task[httpx.Response]) -> None:
            begun = asyncio.create_task(sends.wait())
            await asyncio.wait({begun, sending}, return_when=asyncio.FIRST_COMPLETED)
            begun.cancel()
            await _end(sending)
            if not sending.cancelled() and not sending.exception():
                await _Body(sending.result().stream).aclose()  # nobody will get it

        async def end(sending: asyncio.Task[httpx.Response]) -> None:
            abandoned = asyncio.create_task(abandon(sending))
            self._abandoned.add(abandoned)
            abandoned.add_done_callback(self._abandoned.discard)
            if sends.is_set():  # else it takes as long as connecting does, for which no caller need wait
                await abandoned

        request.extensions["trace"] = trace
        response = await _uncancelled(super().handle_async_request(request), end)
        response.stream = _Body(response.stream)
        return response

    def connections(self) -> tuple[int, int]:
        """How many there are: in use, and idle."""
        connections = self._pool.connections
        idle = sum(connection.is_idle() for connection in connections)
        return len(connections) - idle, idle


class _Answer:
    """See `Answer`."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._reads: AsyncIterator[bytes] = aiter(response.stream)  # type: ignore[arg-type]  # it is an asynchronous one
        self.status = response.status_code
        self.headers = response.headers

    async def read(self) -> bytes:
        return await anext(self._reads, b"")

    async def aclose(self) -> None:
        await self._response.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reads = aiter(self._stream)

        async def read() -> bytes | None:
            return await anext(reads, None)

        while (data := await _uncancelled(read(), _end)) is not None:
            yield data

    async def aclose(self) -> None:
        await asyncio.shield(asyncio.ensure_future(self._stream.aclose()))


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def _uncancelled(work: Coroutine[Any, Any, _T], end: Callable[[asyncio.Task[_T]], Awaitable[None]]) -> _T:
    """The result of the work, done in a task that no cancel reaches: instead `end` ends it, and is waited for."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        ending = asyncio.ensure_future(end(task))
        while not ending.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({ending})
        raise
