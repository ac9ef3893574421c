"""httpx's transport seam over aiohttp: a quarter of httpcore's CPU a call, and no cost for the streams already open.

Must never follow a redirect, keep a cookie, decode a body, read the environment, or let an aiohttp exception out.
"""

import asyncio
import functools
import io
import ssl
from collections.abc import AsyncIterator

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

# The first that fits wins: subclasses stand above their bases.
_HTTPX_ERRORS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (aiohttp.ServerTimeoutError, httpx.ReadTimeout),
    (aiohttp.ClientProxyConnectionError, httpx.ProxyError),
    (aiohttp.ClientConnectorError, httpx.ConnectError),  # refused, DNS, TLS, certificate
    (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError),  # closed before an answer
    (aiohttp.ClientConnectionError, httpx.ReadError),  # reset before an answer, or a kept connection gone stale
    (aiohttp.NonHttpUrlClientError, httpx.UnsupportedProtocol),
    (Exception, httpx.RemoteProtocolError),  # body cut short; not HTTP; headers too large
)
_LARGE_BODY_BYTES = 1 << 20
"""Above it aiohttp warns about bytes; a file it writes in pieces, yielding to the loop."""

_READ_BYTES = 1 << 16
"""At most so much at a time: it is decoded in one go, and other calls have to wait meanwhile."""


class AiohttpTransport(httpx.AsyncBaseTransport):
    """To be made inside the running loop. Holds as many connections as there are calls."""

    def __init__(self, tls: ssl.SSLContext | bool, proxy: str | None = None) -> None:
        connector = aiohttp.TCPConnector(limit=0, ssl=tls)
        connector._factory = functools.partial(_Protocol, loop=asyncio.get_running_loop())  # type: ignore[assignment]
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            max_field_size=1 << 16,
            proxy=proxy,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends the request; the body of the response is read as the caller iterates. Raises `httpx.TransportError`."""
        body, timeout = request.content, request.extensions.get("timeout", {})
        try:
            response = await self._session.request(
                request.method,
                str(request.url),
                headers=[(name.decode("ascii"), value.decode("ascii")) for name, value in request.headers.raw],
                data=io.BytesIO(body) if len(body) > _LARGE_BODY_BYTES else body,
                allow_redirects=False,
                # `connect` spans DNS, TCP and TLS; `sock_connect` leaves DNS out. No pool limit: nobody waits for one.
                timeout=aiohttp.ClientTimeout(connect=timeout.get("connect"), sock_read=timeout.get("read")),
            )
        except aiohttp.ClientError as error:
            raise _httpx_error(error, request) from error
        stream = _Body(response, request)
        return httpx.Response(response.status, headers=response.raw_headers, stream=stream, request=request)

    def connections(self) -> tuple[int, int]:
        """How many there are: in use, and idle."""
        connector = self._session.connector
        assert connector is not None
        return len(connector._acquired), sum(map(len, connector._conns.values()))

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._session.close()


class _Protocol(ResponseHandler):
    """Tells the reader of a body when its connection ends: aiohttp 3.14.5 forgets that if the framing was broken."""

    def connection_lost(self, exc: BaseException | None) -> None:
        payload = self._payload
        super().connection_lost(exc)
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError("the framing of the body is broken"))


class _Body(httpx.AsyncByteStream):
    """Yields what has arrived, as soon as it has."""

    def __init__(self, response: aiohttp.ClientResponse, request: httpx.Request) -> None:
        self._response, self._request = response, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._response.content
        try:
            while data := await content.read(_READ_BYTES):
                yield data
        except (aiohttp.ClientError, HttpProcessingError, RuntimeError) as error:
            # What had arrived before the connection broke: aiohttp itself would drop it.
            if data := content._read_nowait(-1):
                yield data
            # aiohttp says RuntimeError("Connection closed.") after a chunk with broken framing.
            raise _httpx_error(error, self._request) from error

    async def aclose(self) -> None:
        self._response.close()  # does nothing to a connection whose body was read to its end: that one is in the pool


def _httpx_error(error: Exception, request: httpx.Request) -> httpx.TransportError:
    kind = next(kind for origin, kind in _HTTPX_ERRORS if isinstance(error, origin))
    return kind(str(error) or type(error).__name__, request=request)
