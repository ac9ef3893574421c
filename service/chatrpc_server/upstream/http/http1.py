"""HTTP/1.1 over one connection: sends a request as it is, and parses the response with httptools.

It must never follow a redirect, keep a cookie or decode a body. It raises httpx's errors, like the httpx client.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence

import httptools
import httpx

from chatrpc_server.upstream.http import head
from chatrpc_server.upstream.http.errors import InvalidHttp
from chatrpc_server.upstream.http.sockets import quiet_check

_MAX_HEAD_BYTES = 1 << 16
"""Limit of consecutive bytes of head or trailers, because llhttp itself has no limit."""
_MAX_READ_BYTES = 1 << 16
"""Limit of one read, because other calls wait while its bytes are decoded."""


class Connection(asyncio.Protocol):
    """A connection to the upstream. It calls `on_lost` once it is closed."""

    transport: asyncio.Transport

    def __init__(self, connected: socket.socket, on_lost: Callable[["Connection"], None]) -> None:
        self._has_no_byte = quiet_check(connected)
        self._on_lost = on_lost
        self.is_made = False
        self.exchange: Exchange | None = None
        self.idle_since = 0.0
        """Time at which its last exchange completed, in seconds of the loop's clock."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Implement `asyncio.Protocol`."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's transport has another base class
        self.is_made = True

    def is_quiet(self) -> bool:
        """Return whether a request can be sent: the connection is open, and no byte waits that belongs to none.

        The transport can hold decrypted bytes only while reading is paused, which ends with an exchange.
        """
        return not self.transport.is_closing() and self._has_no_byte()

    def abort(self) -> None:
        """Close now, with its exchange. `close()` would first send the buffered bytes, and wait for the peer's TLS."""
        if self.exchange is not None:
            self.exchange.connection_lost(ConnectionAbortedError())
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Implement `asyncio.Protocol`. Data without a request closes the connection."""
        if self.exchange is None:
            self.abort()
        else:
            self.exchange.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Implement `asyncio.Protocol`."""
        if self.exchange is not None:
            self.exchange.connection_lost(exc)
        self._on_lost(self)


class Exchange:
    """One request and its response. It calls `on_done` once; the flag is true if the connection is reusable."""

    def __init__(
        self,
        connection: Connection,
        request: Sequence[bytes],
        on_done: Callable[[Connection, bool], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        """Names are in lower case; the values of a repeated header are joined by a comma."""
        self._connection, self._on_done, self._loop = connection, on_done, loop
        self._parser = self._create_parser()
        self._head: list[bytes] = []
        """All bytes until the head is complete, for a repair."""
        self._unrepaired: bytearray | None = None
        """Bytes of incomplete heads, if the parser has rejected a head and each one is repaired."""
        self._bytes_without_body = 0
        self._has_head = self._is_complete = self._keep_alive = self._has_one_length = False
        self._is_close_delimited = False
        self._buffer: list[bytes] = []
        self._buffered_bytes = 0
        self._is_paused = False
        self._error: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        connection.exchange = self
        for part in request:
            connection.transport.write(part)

    @property
    def has_begun(self) -> bool:
        """Whether a byte of the response has arrived."""
        return self._has_head or bool(self._head)

    async def read_head(self) -> None:
        """Wait for the status and the headers. Raises `httpx.TransportError`."""
        while not self._has_head:
            if self._error:
                raise self._error
            self._waiter = self._loop.create_future()
            await self._waiter

    async def read(self) -> bytes:
        """Return the next bytes of the body, or b"" at its end. Raises `httpx.TransportError`."""
        while not self._buffer:
            if self._is_complete:
                return b""
            if self._error:
                raise self._error
            self._waiter = self._loop.create_future()
            await self._waiter
        if len(self._buffer) == 1:
            data = self._buffer.pop()
        else:
            data = b"".join(self._buffer)
            self._buffer.clear()
        if len(data) > _MAX_READ_BYTES:
            self._buffer.append(data[_MAX_READ_BYTES:])
            data = data[:_MAX_READ_BYTES]
        self._buffered_bytes -= len(data)
        if self._is_paused and self._buffered_bytes < _MAX_READ_BYTES:
            self._resume()
        return data

    async def aclose(self) -> None:
        """Release the connection if the exchange is complete, otherwise close it."""
        self.close()

    def close(self) -> None:
        """Release or close the connection, like `aclose`, without waiting. Further calls do nothing."""
        connection = self._connection
        if connection.exchange is self:
            connection.exchange = None
            del self._parser  # breaks a reference cycle, because the parser refers to this object
            reusable = (
                self._is_complete
                and self._keep_alive
                and not connection.transport.is_closing()
                and not connection.transport.get_write_buffer_size()  # else the request is not sent completely
            )
            if reusable:
                self._resume()
            else:
                connection.abort()
            self._on_done(connection, reusable)

    # Calls from the connection.

    def feed(self, data: bytes) -> None:
        """Parse bytes of the response."""
        self._bytes_without_body += len(data)
        if not self._has_head:
            if self._error:
                return
            self._head.append(data)
        try:
            try:
                if self._unrepaired is None:
                    self._parser.feed_data(data)
                else:
                    self._feed_repaired(data)
            except httptools.HttpParserError:
                if self._has_head or self._error or self._unrepaired is not None:
                    raise
                received = b"".join(self._head)
                if not head.can_repair(received):
                    raise
                self._start_repair(received)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(InvalidHttp(f"not HTTP/1.1: {type(error).__name__}"))
        if self._bytes_without_body > _MAX_HEAD_BYTES:
            self._fail(InvalidHttp(f"more than {_MAX_HEAD_BYTES} bytes of headers"))
        if (
            self._buffered_bytes > _MAX_READ_BYTES
            and not self._is_paused
            and not self._connection.transport.is_closing()
        ):
            self._is_paused = True
            self._connection.transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """Complete or fail the exchange, because the connection is closed."""
        self._keep_alive = False
        if self._is_complete or self._error:
            pass  # the outcome is known already
        elif self._is_close_delimited and error is None:
            self._is_complete = True
        else:
            when = "during the response body" if self._has_head else "before the response"
            kind = httpx.RemoteProtocolError if error is None else httpx.ReadError
            self._error = kind(f"the connection closed {when}")
            self._error.__cause__ = error  # such as a TLS alert
        self._wake()

    # Calls from the parser.

    def on_message_begin(self) -> None:
        """Reject a second response, because it belongs to no request."""
        if self._is_complete:
            raise InvalidHttp("more than one response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; ignore trailers."""
        if self._has_head:
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        known = self.headers.get(key)
        self.headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        """Set the status; ignore interim responses (100 to 199)."""
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers.clear()
            return
        coding = self.headers.get("transfer-encoding")
        if coding is not None and coding.strip().lower() != "chunked":
            self._fail(InvalidHttp("an unknown transfer-encoding"))
            return
        self._has_head = True
        self._head.clear()
        self._has_one_length = coding is None or "content-length" not in self.headers
        self._is_close_delimited = coding is None and "content-length" not in self.headers

    def on_body(self, data: bytes) -> None:
        """Buffer bytes of the body."""
        self._buffer.append(data)
        self._buffered_bytes += len(data)
        self._bytes_without_body = 0

    def on_message_complete(self) -> None:
        """Complete the exchange."""
        if self._has_head:
            self._is_complete = True
            # With a length beside chunks, another program can see another end (RFC 9112 section 6.3).
            self._keep_alive = self._has_one_length and self._parser.should_keep_alive()

    def _create_parser(self) -> httptools.HttpResponseParser:
        parser = httptools.HttpResponseParser(self)
        parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True, lenient_chunked_length=True
        )
        return parser

    def _start_repair(self, received: bytes) -> None:
        """Parse again from the start, with each head repaired."""
        self.headers.clear()
        self._parser = self._create_parser()
        self._unrepaired = bytearray()
        self._feed_repaired(received)

    def _feed_repaired(self, data: bytes) -> None:
        assert self._unrepaired is not None
        start = max(0, len(self._unrepaired) - 3)
        self._unrepaired += data
        while not self._has_head and (length := head.length_of(self._unrepaired, start)):
            self._parser.feed_data(head.repair(bytes(self._unrepaired[:length])))
            del self._unrepaired[:length]
            start = 0
        if self._has_head:
            rest, self._unrepaired = bytes(self._unrepaired), None
            self._parser.feed_data(rest)

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
