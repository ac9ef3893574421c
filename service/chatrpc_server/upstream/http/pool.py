"""Pool of connections to one upstream: opened on demand, without a limit, and kept for the next call.

If a call is cancelled while it connects or during an exchange, its connection closes at once.
"""

import asyncio
import base64
import ssl

import httpx

from chatrpc_server.core.call import Headers
from chatrpc_server.upstream.http import failures
from chatrpc_server.upstream.http.connect import Connector
from chatrpc_server.upstream.http.errors import InvalidHttp
from chatrpc_server.upstream.http.failures import ProxyRefused
from chatrpc_server.upstream.http.http1 import Connection, Exchange

IDLE_SECONDS = 15.0
"""Shorter than the idle timeout of most servers, about a minute: a request sent as the server closes would be lost."""
REST_SECONDS = 0.02
"""Shortest time between the end of a response and the next request on the connection; the longest is twice that.

A second response that an upstream sends by mistake follows within milliseconds. It closes a resting connection. Later
it would be the next caller's. Of 20,000 calls to an upstream that sends such bytes 0 to 2 ms late, in a process of its
own on a loaded machine, this many got foreign bytes: 442 with a rest of 0.1 ms, 22 with 2 ms, 5 with 5 ms, 1 with
10 ms, none with 20 ms. At 1,000 calls per second 30 connections rest.
"""
STALE_SECONDS = 5.0
"""Longest wait for the close of a reused connection that the upstream had closed before. It is one round trip."""
_LARGE_BYTES = 1 << 20
"""Bytes of a body from which it is sent without a copy, because both would stay in memory until the response."""


class Pool:
    """The pool. Create it inside the running loop. Every request has these `headers`; `tls` is for https."""

    def __init__(
        self,
        url: httpx.URL,
        headers: Headers,
        tls: ssl.SSLContext | None,
        proxy: httpx.Proxy | None,
        connect_timeout_seconds: float,
        keepalive_seconds: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = Connector(keepalive_seconds)
        self._tls = tls
        self._host, self._port = url.raw_host.decode("ascii"), url.port or (443 if tls else 80)
        self._proxy = proxy.url if proxy else None
        self._proxy_headers = _header_lines(_authorization(proxy))
        self._connect_timeout_seconds = connect_timeout_seconds
        host = url.netloc.decode("ascii")
        target, lines = url.raw_path.decode("ascii"), _header_lines(headers)
        if proxy and not tls:  # without a tunnel, the proxy reads the request, and needs the complete URL
            target, lines = str(url.copy_with(fragment=None)), self._proxy_headers + lines
        self._request_head = f"POST {target} HTTP/1.1\r\nhost: {host}\r\n{lines}".encode("ascii")
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        """All connections that are neither idle nor closed, including those that rest or are closing."""
        self._resting: list[Connection] = []
        self._rested: list[Connection] = []
        """Connections that have completed an exchange: since the last tick of the rest timer, and before it."""
        self._rest_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None

    async def post(self, body: bytes, headers: Headers) -> Exchange:
        """Send a request and wait for the head of its response. Raises `httpx.TransportError`."""
        lines = f"{_header_lines(headers)}content-length: {len(body)}\r\n\r\n".encode("ascii")
        head = self._request_head + lines
        request = (head + body,) if len(body) < _LARGE_BYTES else (head, body)
        if (connection := self._take_idle()) is not None:
            started = self._loop.time()
            exchange = Exchange(connection, request, self._on_done, self._loop)
            try:
                return await self._read_head(exchange)
            except httpx.TransportError:
                if exchange.has_begun or self._loop.time() - started > STALE_SECONDS:
                    raise
                # The upstream had closed the connection. A new one is no retry, and its failure counts.
        return await self._read_head(Exchange(await self._connect(), request, self._on_done, self._loop))

    def connections(self) -> tuple[int, int]:
        """Return the numbers of connections in use and idle."""
        return len(self._busy), len(self._idle)

    async def aclose(self) -> None:
        """Close all connections."""
        for timer in (self._rest_timer, self._idle_timer):
            if timer:
                timer.cancel()
        for connection in (*self._idle, *self._busy):
            connection.abort()
        while self._idle or self._busy:  # noqa: ASYNC110  # a few turns of the loop
            await asyncio.sleep(0)

    @staticmethod
    async def _read_head(exchange: Exchange) -> Exchange:
        try:
            await exchange.read_head()
        except BaseException:
            exchange.close()
            raise
        return exchange

    def _take_idle(self) -> Connection | None:
        """Return the newest idle connection that is open, without a byte that no request asked for; close others."""
        while self._idle:
            connection = self._idle.pop()
            self._busy.add(connection)
            if connection.is_quiet():
                return connection
            connection.abort()
        return None

    def _on_done(self, connection: Connection, reusable: bool) -> None:
        if not reusable:
            return  # the connection is closing: `_on_lost` follows
        connection.idle_since = self._loop.time()
        self._resting.append(connection)
        if self._rest_timer is None:
            self._rest_timer = self._loop.call_later(REST_SECONDS, self._on_rest_timer)

    def _on_rest_timer(self) -> None:
        """Release the connections that have rested between two ticks, a turn later, so that what is due comes first."""
        if self._rested:
            self._loop.call_soon(self._release, self._rested)
        self._rested, self._resting = self._resting, []
        self._rest_timer = self._loop.call_later(REST_SECONDS, self._on_rest_timer) if self._rested else None

    def _release(self, connections: list[Connection]) -> None:
        rested = [connection for connection in connections if not connection.transport.is_closing()]
        self._busy.difference_update(rested)
        self._idle += rested
        if rested and self._idle_timer is None:
            self._idle_timer = self._loop.call_later(IDLE_SECONDS, self._close_idle)

    def _on_lost(self, connection: Connection) -> None:
        if connection in self._busy:
            self._busy.remove(connection)
        elif connection in self._idle:
            self._idle.remove(connection)

    def _close_idle(self) -> None:
        """Close connections that were idle too long. The oldest come first, because the newest are used first."""
        latest = self._loop.time() - IDLE_SECONDS
        for connection in self._idle:
            if connection.idle_since <= latest:
                connection.abort()
        kept = [connection for connection in self._idle if connection.idle_since > latest]
        self._idle_timer = self._loop.call_at(kept[0].idle_since + IDLE_SECONDS, self._close_idle) if kept else None

    async def _connect(self) -> Connection:
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                if self._proxy is None:
                    return await self._open(self._host, self._port, self._tls)
                connection = await self._open(self._proxy.host, self._proxy.port or 80, None)
                if self._tls:
                    await self._tunnel(connection, self._tls)
                return connection
        except TimeoutError as error:
            raise httpx.ConnectTimeout("connecting timed out") from error
        except OSError as error:  # refused, DNS, TLS, certificate
            raise httpx.ConnectError(str(error)) from error

    async def _open(self, host: str, port: int, tls: ssl.SSLContext | None) -> Connection:
        connected = await self._connector.connect(host, port)
        connection = Connection(connected, self._on_lost)
        try:
            with failures.step(failures.HANDSHAKE):
                await self._loop.create_connection(
                    lambda: connection, sock=connected, ssl=tls, server_hostname=host if tls else None
                )
            self._add(connection)
        except BaseException:
            if connection.is_made:
                connection.abort()  # first, so that it cannot use the file descriptor after another socket gets it
            connected.close()
            raise
        return connection

    def _add(self, connection: Connection) -> None:
        """Add a connection. Raises OSError if it is closing, because the pool would never remove it."""
        if connection.transport.is_closing():
            raise ConnectionResetError("the connection closed immediately")
        self._busy.add(connection)

    async def _tunnel(self, connection: Connection, tls: ssl.SSLContext) -> None:
        """Open a tunnel through the proxy (RFC 9110 section 9.3.6), and start TLS with the upstream."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        target = f"{host}:{self._port}"
        request = f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{self._proxy_headers}\r\n".encode("ascii")
        exchange = Exchange(connection, (request,), lambda _, __: None, self._loop)
        try:
            try:
                with failures.step(failures.TUNNEL):
                    await exchange.read_head()
            except InvalidHttp as error:
                raise httpx.RemoteProtocolError(f"the proxy's response is {error}") from error
            if not 200 <= exchange.status < 300:
                raise ProxyRefused(exchange.status)
            connection.exchange = None
            with failures.step(failures.HANDSHAKE):
                transport = await self._loop.start_tls(
                    connection.transport, connection, tls, server_hostname=self._host
                )
            if transport is None:  # the connection is lost already
                raise ConnectionResetError("the tunnel closed immediately")
            connection.transport = transport
            self._add(connection)
        except BaseException:
            connection.abort()
            self._on_lost(connection)  # because asyncio does not report the loss before TLS has started
            raise


def _authorization(proxy: httpx.Proxy | None) -> Headers:
    """Return the header with the proxy's user name and password, if it has them (RFC 7617)."""
    if proxy is None or proxy.raw_auth is None:
        return []
    return [("proxy-authorization", f"Basic {base64.b64encode(b':'.join(proxy.raw_auth)).decode()}")]


def _header_lines(headers: Headers) -> str:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if not lines.count("\r") == lines.count("\n") == len(headers):
        raise ValueError("a header value has more than one line")
    return lines
