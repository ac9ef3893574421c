"""Pool of connections to one upstream: opened on demand, without a limit, and kept for the next call.

If a call is cancelled while it connects or during an exchange, its connection closes at once.
"""

import asyncio
import base64
import ssl

import httpx

from chatrpc_server.core.call import Headers
from chatrpc_server.upstream.http.connect import Connector
from chatrpc_server.upstream.http.failures import ProxyRefused
from chatrpc_server.upstream.http.http1 import Connection, Exchange

IDLE_SECONDS = 15.0
"""Shorter than the idle timeout of most servers, about a minute: a request sent as the server closes would be lost."""


class Pool:
    """The pool. Create it inside the running loop. Every request has these `headers`; `tls` is for https."""

    def __init__(
        self,
        url: httpx.URL,
        headers: Headers,
        tls: ssl.SSLContext | None,
        proxy: httpx.Proxy | None,
        connect_timeout_seconds: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = Connector()
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
        """All connections that are neither idle nor closed, including those that are closing."""
        self._idle_timer: asyncio.TimerHandle | None = None

    async def post(self, body: bytes, headers: Headers) -> Exchange:
        """Send a request and wait for the head of its response. Raises `httpx.TransportError`."""
        lines = f"{_header_lines(headers)}content-length: {len(body)}\r\n\r\n".encode("ascii")
        connection = self._take_idle() or await self._connect()
        exchange = Exchange(connection, b"".join((self._request_head, lines, body)), self._on_done, self._loop)
        try:
            await exchange.read_head()
        except BaseException:
            exchange.close()
            raise
        return exchange

    def connections(self) -> tuple[int, int]:
        """Return the numbers of connections in use and idle."""
        return len(self._busy), len(self._idle)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._idle_timer:
            self._idle_timer.cancel()
        for connection in (*self._idle, *self._busy):
            connection.abort()
        while self._idle or self._busy:  # noqa: ASYNC110  # a few turns of the loop
            await asyncio.sleep(0)

    def _take_idle(self) -> Connection | None:
        """Return the newest idle connection that is not closing."""
        while self._idle:
            connection = self._idle.pop()
            self._busy.add(connection)
            if not connection.transport.is_closing():
                return connection
        return None

    def _on_done(self, connection: Connection, reusable: bool) -> None:
        if not reusable:
            return  # the connection is closing: `_on_lost` follows
        self._busy.discard(connection)
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if self._idle_timer is None:
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
        except TimeoutError:
            raise httpx.ConnectTimeout("connecting timed out") from None
        except OSError as error:  # refused, DNS, TLS, certificate
            raise httpx.ConnectError(str(error)) from error

    async def _open(self, host: str, port: int, tls: ssl.SSLContext | None) -> Connection:
        connected = await self._connector.connect(host, port)
        connection = Connection(self._on_lost)
        try:
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
        exchange = Exchange(connection, request, lambda _, __: None, self._loop)
        try:
            await exchange.read_head()
            if not 200 <= exchange.status < 300:
                raise ProxyRefused(exchange.status)
            connection.exchange = None
            transport = await self._loop.start_tls(connection.transport, connection, tls, server_hostname=self._host)
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
