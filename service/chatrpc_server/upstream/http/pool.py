"""Connections to one upstream: made when they are needed, kept for the next call. As many as there are calls.

A connection that is cancelled as it connects, or in an exchange, is ended there and then.
"""

import asyncio
import socket
import ssl

import aiohappyeyeballs
import httpx

from chatrpc_server.core.call import Headers
from chatrpc_server.upstream.http.http1 import Connection, Exchange

_IDLE_SECONDS = 15.0
"""Servers close what is idle, often after a minute or so; a request that crosses with that would be lost."""
_NEXT_ADDRESS_SECONDS = 0.25
"""Happy Eyeballs, RFC 8305 section 8: the Connection Attempt Delay."""


class Pool:
    """To be made inside the running loop. `headers` go with every request; `tls` is for https."""

    def __init__(
        self,
        url: httpx.URL,
        headers: Headers,
        tls: ssl.SSLContext | None,
        proxy: str | None,
        connect_timeout_seconds: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tls = tls
        self._host, self._port = url.raw_host.decode("ascii"), url.port or (443 if tls else 80)
        self._proxy = httpx.URL(proxy) if proxy else None
        self._connect_timeout_seconds = connect_timeout_seconds
        host = url.netloc.decode("ascii")
        # A proxy is asked for the whole URL, unless what it sees is a tunnel.
        target = str(url.copy_with(fragment=None)) if proxy and not tls else url.raw_path.decode("ascii")
        self._head = f"POST {target} HTTP/1.1\r\nhost: {host}\r\n{_lines(headers)}".encode("ascii")
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        """With those that are being ended: all that are neither idle nor lost."""
        self._sweep: asyncio.TimerHandle | None = None

    async def post(self, body: bytes, headers: Headers) -> Exchange:
        """Sends a request, and waits for the head of its response. Raises `httpx.TransportError`."""
        lines = f"{_lines(headers)}content-length: {len(body)}\r\n\r\n".encode("ascii")
        connection = self._kept() or await self._connect()
        exchange = Exchange(connection, b"".join((self._head, lines, body)), self._over, self._loop)
        try:
            await exchange.head()
        except BaseException:
            exchange.close()
            raise
        return exchange

    def connections(self) -> tuple[int, int]:
        """How many there are: in use, and idle."""
        return len(self._busy), len(self._idle)

    async def aclose(self) -> None:
        """Closes all connections."""
        if self._sweep:
            self._sweep.cancel()
        for connection in (*self._idle, *self._busy):
            connection.abort()
        while self._idle or self._busy:  # noqa: ASYNC110  # a few turns of the loop
            await asyncio.sleep(0)

    def _kept(self) -> Connection | None:
        """The newest idle connection that is not just being ended, by its peer or because it was idle for too long."""
        while self._idle:
            connection = self._idle.pop()
            self._busy.add(connection)
            if not connection.transport.is_closing():
                return connection
        return None

    def _over(self, connection: Connection, reusable: bool) -> None:
        if not reusable:
            return  # it is about to be lost
        self._busy.discard(connection)
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(_IDLE_SECONDS, self._end_idle)

    def _lost(self, connection: Connection) -> None:
        if connection in self._busy:
            self._busy.remove(connection)
        elif connection in self._idle:
            self._idle.remove(connection)

    def _end_idle(self) -> None:
        """Ends what has been idle for long enough. The newest are used first, so the oldest stand in front."""
        latest = self._loop.time() - _IDLE_SECONDS
        for connection in self._idle:
            if connection.idle_since <= latest:
                connection.abort()
        left = [connection for connection in self._idle if connection.idle_since > latest]
        self._sweep = self._loop.call_at(left[0].idle_since + _IDLE_SECONDS, self._end_idle) if left else None

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
            raise httpx.ConnectTimeout("no connection in time") from None
        except OSError as error:  # refused, DNS, TLS, a certificate
            raise httpx.ConnectError(str(error)) from error

    async def _open(self, host: str, port: int, tls: ssl.SSLContext | None) -> Connection:
        addresses = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        connected = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS)
        connection = Connection(self._lost)
        try:
            await self._loop.create_connection(
                lambda: connection, sock=connected, ssl=tls, server_hostname=host if tls else None
            )
            self._begin(connection)
        except BaseException:
            if connection.is_made:
                connection.abort()  # else it would use the socket a little longer, which may soon be another's
            connected.close()
            raise
        return connection

    def _begin(self, connection: Connection) -> None:
        """Counts the connection, unless it has ended meanwhile: it may be lost already, and would stay for ever."""
        if connection.transport.is_closing():
            raise ConnectionResetError("the connection ended as soon as it was made")
        self._busy.add(connection)

    async def _tunnel(self, connection: Connection, tls: ssl.SSLContext) -> None:
        """Has the proxy connect to the upstream (RFC 9110 section 9.3.6), and speaks TLS with that."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        target = f"{host}:{self._port}"
        request = f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode("ascii")
        exchange = Exchange(connection, request, lambda _, __: None, self._loop)
        try:
            await exchange.head()
            if not 200 <= exchange.status < 300:
                raise httpx.ProxyError(f"the proxy refuses to connect: HTTP status {exchange.status}")
            connection.exchange = None
            transport = await self._loop.start_tls(connection.transport, connection, tls, server_hostname=self._host)
            if transport is None:  # as asyncio says that it is lost already
                raise ConnectionResetError("the tunnel ended as soon as it was made")
            connection.transport = transport
            self._begin(connection)
        except BaseException:
            connection.abort()
            self._lost(connection)  # of which asyncio tells nothing if there was no TLS yet
            raise


def _lines(headers: Headers) -> str:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if not lines.count("\r") == lines.count("\n") == len(headers):
        raise ValueError("a header's value has more than one line")
    return lines
