"""HTTP/1.1 over one connection: a request goes out as it is, httptools reads the response.

Must never follow a redirect, keep a cookie or decode a body. Errors are httpx's, so that both engines speak alike.
"""

import asyncio
from collections.abc import Callable

import httptools
import httpx

_HEAD_BYTES = 1 << 16
"""Most that may come in a row without any of the body, as its head or its trailers; llhttp itself has no limit."""
_READ_BYTES = 1 << 16
"""At most so much at a time: it is decoded in one go, and other calls have to wait meanwhile."""


class Connection(asyncio.Protocol):
    """A connection to the upstream. `lost` is told when it is gone."""

    transport: asyncio.Transport

    def __init__(self, lost: Callable[["Connection"], None]) -> None:
        self._lost = lost
        self.is_made = False
        self.exchange: Exchange | None = None
        self.idle_since = 0.0
        """When its last exchange ended, in seconds of the loop's clock."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio says."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's is none of asyncio's classes
        self.is_made = True

    def abort(self) -> None:
        """Ends it now, with what it carries. close() would first send what is left, and wait for the peer's TLS."""
        if self.exchange is not None:
            self.exchange.cut_off(ConnectionAbortedError())
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """As asyncio says. What comes without having been asked for ends the connection."""
        if self.exchange is None:
            self.abort()
        else:
            self.exchange.take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio says."""
        if self.exchange is not None:
            self.exchange.cut_off(exc)
        self._lost(self)


class Exchange:
    """One request and its response. `over` is told once whether the connection can serve another."""

    def __init__(
        self,
        connection: Connection,
        request: bytes,
        over: Callable[[Connection, bool], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        """Names are in lower case; the values of one that is repeated are joined by a comma."""
        self._connection, self._over, self._loop = connection, over, loop
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True, lenient_chunked_length=True
        )
        self._bare_bytes = 0
        self._has_head = self._is_complete = self._keeps_alive = False
        self._ends_with_connection = False
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0
        self._is_paused = False
        self._error: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        connection.exchange = self
        connection.transport.write(request)

    async def head(self) -> None:
        """Waits for the status and the headers. Raises `httpx.TransportError`."""
        while not self._has_head:
            if self._error:
                raise self._error
            self._waiter = self._loop.create_future()
            await self._waiter

    async def read(self) -> bytes:
        """What has come of the body since, once there is any; nothing at its end. Raises `httpx.TransportError`."""
        while not self._pieces:
            if self._is_complete:
                return b""
            if self._error:
                raise self._error
            self._waiter = self._loop.create_future()
            await self._waiter
        if len(self._pieces) == 1:
            data = self._pieces.pop()
        else:
            data = b"".join(self._pieces)
            self._pieces.clear()
        if len(data) > _READ_BYTES:
            self._pieces.append(data[_READ_BYTES:])
            data = data[:_READ_BYTES]
        self._waiting_bytes -= len(data)
        if self._is_paused and self._waiting_bytes < _READ_BYTES:
            self._resume()
        return data

    async def aclose(self) -> None:
        """Gives the connection back if the exchange has come to its end, else ends it."""
        self.close()

    def close(self) -> None:
        """The same; further calls do nothing."""
        connection = self._connection
        if connection.exchange is self:
            connection.exchange = None
            del self._parser  # it holds our methods: a cycle
            reusable = (
                self._is_complete
                and self._keeps_alive
                and not connection.transport.is_closing()
                and not connection.transport.get_write_buffer_size()  # answered before all of the request was sent
            )
            if reusable:
                self._resume()
            else:
                connection.abort()
            self._over(connection, reusable)

    # What the connection tells.

    def take(self, data: bytes) -> None:
        """Bytes of the response."""
        self._bare_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(httpx.RemoteProtocolError(f"not HTTP: {type(error).__name__}"))
        if self._bare_bytes > _HEAD_BYTES:
            self._fail(httpx.RemoteProtocolError(f"more than {_HEAD_BYTES} bytes of headers"))
        if self._waiting_bytes > _READ_BYTES and not self._is_paused and not self._connection.transport.is_closing():
            self._is_paused = True
            self._connection.transport.pause_reading()
        self._wake()

    def cut_off(self, error: Exception | None) -> None:
        """The connection has ended."""
        self._keeps_alive = False
        if self._is_complete or self._error:
            pass  # it is no news
        elif self._ends_with_connection and error is None:
            self._is_complete = True
        else:
            where = "in the middle of the body" if self._has_head else "before an answer"
            kind = httpx.RemoteProtocolError if error is None else httpx.ReadError
            self._error = kind(f"the connection ended {where}")
        self._wake()

    # What the parser tells.

    def on_message_begin(self) -> None:
        """As httptools says. A second response would be no answer to anything: the parser goes no further."""
        if self._is_complete:
            raise httpx.RemoteProtocolError("more than one response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """As httptools says. Trailers are passed over."""
        if self._has_head:
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        known = self.headers.get(key)
        self.headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        """As httptools says. Interim responses (100 to 199) are passed over."""
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers.clear()
            return
        self._has_head = True
        self._ends_with_connection = not (
            "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "").lower()
        )

    def on_body(self, data: bytes) -> None:
        """As httptools says."""
        self._pieces.append(data)
        self._waiting_bytes += len(data)
        self._bare_bytes = 0

    def on_message_complete(self) -> None:
        """As httptools says."""
        if self._has_head:
            self._is_complete = True
            self._keeps_alive = self._parser.should_keep_alive()

    def _fail(self, error: httpx.TransportError) -> None:
        self._error = self._error or error
        self._connection.abort()

    def _resume(self) -> None:
        if self._is_paused and not self._connection.transport.is_closing():
            self._is_paused = False
            self._connection.transport.resume_reading()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
