"""httpx's own transport, changed so that a cancelled call leaks no connection.

httpcore leaks a connection in two cases. First, if a second cancellation arrives during its clean-up: after a deadline
both gRPC and our own timeout cancel. Second, if the cancellation arrives just as it has connected: then the connection
is neither idle nor in use. So each step runs in its own task, which is cancelled once, and only after it has connected.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import httpx

from chatrpc_server.core.call import Headers
from chatrpc_server.upstream.http.connect import Connector
from chatrpc_server.upstream.http.errors import InvalidHttp
from chatrpc_server.upstream.http.failures import ProxyRefused
from chatrpc_server.upstream.http.httpx_stream import PROGRESS, NetworkBackend, NetworkStream, Progress
from chatrpc_server.upstream.http.pool import IDLE_SECONDS, REST_SECONDS, STALE_SECONDS

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
        keepalive_seconds: int,
    ) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_SECONDS)
        super().__init__(verify=tls or True, trust_env=False, limits=limits, proxy=proxy)
        has_tunnel = proxy is not None and url.scheme == "https"
        backend = NetworkBackend(Connector(keepalive_seconds), has_tunnel=has_tunnel)
        self._pool._network_backend = backend  # httpx has no argument for it
        self._url, self._headers = url, list(headers)
        self._extensions = {"timeout": {"connect": connect_timeout_seconds}}
        self._abandoned: set[asyncio.Task[None]] = set()
        self._resting: set[asyncio.Task[None]] = set()

    async def post(self, body: bytes, headers: Headers) -> "_Response":
        """Implement `Transport`."""
        request = httpx.Request(
            "POST", self._url, headers=[*self._headers, *headers], content=body, extensions=dict(self._extensions)
        )
        progress, started = Progress(), time.monotonic()
        try:
            return await self._send(request, progress)
        except httpx.TransportError:
            stream = progress.stream
            if (
                stream is None
                or not progress.is_reused
                or stream.has_response
                or time.monotonic() - started > STALE_SECONDS
            ):
                raise
        # The upstream had closed the connection, and probably the idle ones too. A new one is no retry.
        for connection in self._pool.connections:
            if connection.is_idle():
                await connection.aclose()
        return await self._send(request, Progress())

    async def _send(self, request: httpx.Request, progress: Progress) -> "_Response":
        request.extensions["progress"] = progress
        try:
            response = await self.handle_async_request(request)
            response.extensions["network_stream"].bytes_before_head = None
            return _Response(response, progress, self._rest)
        except httpx.ProxyError as error:
            # httpcore gives the status only in the text, before the proxy's own words.
            raise ProxyRefused(int(str(error).partition(" ")[0])) from None
        except httpx.RemoteProtocolError as error:
            stream = progress.stream
            if self._url.scheme == "https" and stream is not None and not stream.get_extra_info("ssl_object"):
                raise  # a response of the proxy, to CONNECT
            raise _classify(error, progress) from error

    async def aclose(self) -> None:
        """Implement `Transport`."""
        for task in self._resting:
            task.cancel()
        if self._resting:
            await asyncio.wait(self._resting)
        await super().aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Implement `httpx.AsyncBaseTransport`."""
        is_sending = asyncio.Event()
        progress: Progress = request.extensions.setdefault("progress", Progress())

        async def send() -> httpx.Response:
            PROGRESS.set(progress)
            try:
                return await super(HttpxTransport, self).handle_async_request(request)
            except BaseException:
                await self._forget_tunnel(progress.stream)
                raise

        async def trace(event: str, _: object) -> None:
            """Observe httpcore's steps. Names of connection steps are like `connection.connect_tcp.started`.

            `proxy.start_tls.started` is one too: TLS in a tunnel.
            """
            if event.startswith(("connection.", "proxy.")):
                is_sending.clear()
                progress.is_reused = False
            else:
                is_sending.set()

        async def abandon(request_task: asyncio.Task[httpx.Response]) -> None:
            sending = asyncio.create_task(is_sending.wait())
            await asyncio.wait({sending, request_task}, return_when=asyncio.FIRST_COMPLETED)
            sending.cancel()
            await _cancel(request_task)
            if not request_task.cancelled() and not request_task.exception():
                await _close(request_task.result())  # because the caller has disconnected

        async def stop(request_task: asyncio.Task[httpx.Response]) -> None:
            abandoned = asyncio.create_task(abandon(request_task))
            self._abandoned.add(abandoned)
            abandoned.add_done_callback(self._abandoned.discard)
            if is_sending.is_set():  # otherwise connecting continues, and the caller need not wait for it
                await abandoned

        request.extensions["trace"] = trace
        response = await _run_shielded(send(), stop)
        response.stream = _Body(response.stream)
        return response

    def connections(self) -> tuple[int, int]:
        """Return the numbers of connections in use and idle."""
        connections = [connection for connection in self._pool.connections if not connection.is_closed()]
        idle = sum(connection.is_idle() for connection in connections)
        return len(connections) - idle, idle

    async def _forget_tunnel(self, stream: NetworkStream | None) -> None:
        """Close the connection whose tunnel has failed after the proxy's response, because httpcore keeps it."""
        if stream is None or stream.tunnel_deadline is None:
            return
        for connection in self._pool.connections:
            with suppress(AttributeError):  # a connection in another state, or another version of httpcore
                if connection._connection._connection._network_stream is stream:  # type: ignore[attr-defined]
                    await connection.aclose()

    def _rest(self, response: httpx.Response) -> None:
        """Keep the connection of a complete response out of use for a while, as the built-in client does."""

        async def release() -> None:
            await asyncio.sleep(REST_SECONDS)
            await asyncio.sleep(0)  # so that what is due comes first
            stream: NetworkStream = response.extensions["network_stream"]
            if not (stream.is_quiet() and _ends_clearly(response)):
                await _close(response)
            else:
                await response.aclose()

        resting = asyncio.create_task(release())
        self._resting.add(resting)
        resting.add_done_callback(self._resting.discard)


class _Response:
    """Implementation of `transport.Response`. It calls `rest` if the response is complete when it closes."""

    def __init__(self, response: httpx.Response, progress: Progress, rest: Callable[[httpx.Response], None]) -> None:
        self._response, self._progress, self._rest = response, progress, rest
        self._reads: AsyncIterator[bytes] = aiter(response.stream)  # type: ignore[arg-type]  # it is an AsyncByteStream here
        self._is_complete = self._is_closed = False
        self.status = response.status_code
        self.headers = response.headers

    async def read(self) -> bytes:
        try:
            data = await anext(self._reads, b"")
        except httpx.RemoteProtocolError as error:
            raise _classify(error, self._progress) from error
        self._is_complete = not data
        return data

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_complete:
            self._rest(self._response)
        else:
            await _close(self._response)


async def _close(response: httpx.Response) -> None:
    """Close a response and its connection. httpcore keeps the connection if its own state is complete."""
    response.extensions["network_stream"].abort()
    await asyncio.shield(asyncio.ensure_future(response.aclose()))


def _classify(error: httpx.RemoteProtocolError, progress: Progress) -> httpx.RemoteProtocolError:
    """Return the error of a response that is invalid, not cut off. h11 raises the same error for both."""
    was_closed = progress.stream is None or progress.stream.is_exhausted
    return error if was_closed else InvalidHttp(str(error))


def _ends_clearly(response: httpx.Response) -> bool:
    """Return whether the next bytes on the connection can only be the next response.

    h11 would read bytes behind a response as the next one. With a length beside chunks, another program can see another
    end (RFC 9112 section 6.3).
    """
    try:
        h11 = response.stream._stream._httpcore_stream._stream._connection._h11_state  # type: ignore[union-attr]
    except AttributeError:  # another version of httpcore
        return False
    has_two_lengths = "content-length" in response.headers and "transfer-encoding" in response.headers
    return not h11.trailing_data[0] and not has_two_lengths


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
