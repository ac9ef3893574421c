"""httpx's own transport, changed so that a cancelled call leaks no connection.

httpcore leaks a connection in two cases. First, if a second cancellation arrives during its clean-up: after a deadline
both gRPC and our own timeout cancel. Second, if the cancellation arrives just as it has connected: then the connection
is neither idle nor in use. So each step runs in its own task, which is cancelled once, and only after it has connected.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import httpcore
import httpx
from anyio.abc import SocketStream
from httpcore._backends.anyio import AnyIOStream  # the only class of streams that `start_tls` accepts

from chatrpc_server.core.call import Headers
from chatrpc_server.upstream.http.connect import Connector
from chatrpc_server.upstream.http.failures import ProxyRefused
from chatrpc_server.upstream.http.pool import IDLE_SECONDS

_T = TypeVar("_T")


class HttpxTransport(httpx.AsyncHTTPTransport):
    """Transport whose responses close even if the call is cancelled several times."""

    def __init__(
        self,
        url: httpx.URL,
        headers: Headers,
        tls: ssl.SSLContext | None,
        proxy: httpx.Proxy | None,
        connect_timeout_seconds: float,
    ) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_SECONDS)
        super().__init__(verify=tls or True, trust_env=False, limits=limits, proxy=proxy)
        self._pool._network_backend = _Backend(Connector())  # httpx has no argument for it
        self._url, self._headers = url, list(headers)
        self._extensions = {"timeout": {"connect": connect_timeout_seconds}}
        self._abandoned: set[asyncio.Task[None]] = set()

    async def post(self, body: bytes, headers: Headers) -> "_Response":
        """Implement `Transport`."""
        request = httpx.Request(
            "POST", self._url, headers=[*self._headers, *headers], content=body, extensions=dict(self._extensions)
        )
        try:
            return _Response(await self.handle_async_request(request))
        except httpx.ProxyError as error:
            # httpcore gives the status only in the text, before the proxy's own words.
            raise ProxyRefused(int(str(error).partition(" ")[0])) from None
        except ssl.SSLError as error:  # httpcore passes it on after the handshake
            raise httpx.ReadError("TLS failed before the response") from error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Implement `httpx.AsyncBaseTransport`."""
        is_sending = asyncio.Event()

        async def trace(event: str, _: object) -> None:
            """Observe httpcore's steps. Names of connection steps are like `connection.connect_tcp.started`."""
            if event.startswith("connection."):
                is_sending.clear()
            else:
                is_sending.set()

        async def abandon(request_task: asyncio.Task[httpx.Response]) -> None:
            sending = asyncio.create_task(is_sending.wait())
            await asyncio.wait({sending, request_task}, return_when=asyncio.FIRST_COMPLETED)
            sending.cancel()
            await _cancel(request_task)
            if not request_task.cancelled() and not request_task.exception():
                await _Body(request_task.result().stream).aclose()  # because the caller has disconnected

        async def stop(request_task: asyncio.Task[httpx.Response]) -> None:
            abandoned = asyncio.create_task(abandon(request_task))
            self._abandoned.add(abandoned)
            abandoned.add_done_callback(self._abandoned.discard)
            if is_sending.is_set():  # otherwise connecting continues, and the caller need not wait for it
                await abandoned

        request.extensions["trace"] = trace
        response = await _run_shielded(super().handle_async_request(request), stop)
        response.stream = _Body(response.stream)
        return response

    def connections(self) -> tuple[int, int]:
        """Return the numbers of connections in use and idle."""
        connections = self._pool.connections
        idle = sum(connection.is_idle() for connection in connections)
        return len(connections) - idle, idle


class _Backend(httpcore.AnyIOBackend):
    """httpcore's own backend, but with the names and sockets of `Connector`."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *_: object, **__: object
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                connected = await self._connector.connect(host, port)
                try:
                    return AnyIOStream(await SocketStream.from_socket(connected))
                except BaseException:
                    connected.close()
                    raise
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error


class _Response:
    """Implementation of `transport.Response`."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._reads: AsyncIterator[bytes] = aiter(response.stream)  # type: ignore[arg-type]  # it is an AsyncByteStream here
        self.status = response.status_code
        self.headers = response.headers

    async def read(self) -> bytes:
        try:
            return await anext(self._reads, b"")
        except ssl.SSLError as error:
            raise httpx.ReadError("TLS failed during the response body") from error

    async def aclose(self) -> None:
        await self._response.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reads = aiter(self._stream)

        async def read() -> bytes | None:
            return await anext(reads, None)

        while (data := await _run_shielded(read(), _cancel)) is not None:
            yield data

    async def aclose(self) -> None:
        await asyncio.shield(asyncio.ensure_future(self._stream.aclose()))


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def _run_shielded(work: Coroutine[Any, Any, _T], stop: Callable[[asyncio.Task[_T]], Awaitable[None]]) -> _T:
    """Run the work in a task of its own. On cancellation call `stop` with the task, and wait until `stop` returns."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stopping = asyncio.ensure_future(stop(task))
        while not stopping.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({stopping})
        raise
