"""Connections of the httpx client: httpcore's network port over asyncio's transports.

httpcore's own streams read only on request. So they lose a response that the upstream sends before it closes without
reading the whole request, and they keep a stray response for the next request. These read at once, like `http1`.
"""

import asyncio
import socket
import ssl
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

import httpcore

from chatrpc_server.upstream.http import failures
from chatrpc_server.upstream.http.connect import Connector
from chatrpc_server.upstream.http.sockets import quiet_check

_MAX_BUFFERED_BYTES = 1 << 16
_MAX_HEAD_BYTES = 1 << 18
"""Bytes before the head of the response is complete. h11 limits each head but not the number of interim responses."""


class Progress:
    """The progress of one request through httpcore, which reports none of it with its errors."""

    def __init__(self) -> None:
        self.stream: NetworkStream | None = None
        """The connection to which the request was written last."""
        self.is_reused = True
        """Whether that connection had completed an exchange before."""


PROGRESS: ContextVar[Progress] = ContextVar("progress")
"""The request of the current task."""


class NetworkBackend(httpcore.AsyncNetworkBackend):
    """Opens the connections."""

    def __init__(self, connector: Connector, *, has_tunnel: bool) -> None:
        self._connector, self._has_tunnel = connector, has_tunnel

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> "NetworkStream":
        """Implement `httpcore.AsyncNetworkBackend`."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        try:
            async with asyncio.timeout_at(deadline):
                connected = await self._connector.connect(host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("connecting timed out") from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        stream = NetworkStream(connected)
        if self._has_tunnel:
            stream.tunnel_deadline = deadline
        try:
            await loop.create_connection(lambda: stream, sock=connected)
        except BaseException:
            stream.abort()
            connected.close()
            raise
        return stream


class NetworkStream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One connection."""

    def __init__(self, connected: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._has_no_byte = quiet_check(connected)
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._is_reading_paused = self._is_writing_paused = False
        self._is_lost = False
        self._error: Exception | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self.has_response = False
        """Whether a byte has arrived since the last request."""
        self.bytes_before_head: int | None = 0
        """Bytes that httpcore has read since the last request, until `None` reports that the head is complete."""
        self.is_exhausted = False
        """Whether httpcore has read all bytes before the close."""
        self.tunnel_deadline: float | None = None
        """Time by which a proxy must have responded to CONNECT, because httpcore waits without a limit."""

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def is_quiet(self) -> bool:
        """Return whether the connection is open, and no byte waits."""
        return (
            not self._buffer
            and not self._is_lost
            and self._transport is not None
            and not self._transport.is_closing()
            and not self._transport.get_write_buffer_size()  # else the last request is not sent completely
            and self._has_no_byte()
        )

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Implement `asyncio.Protocol`."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's transport has another base class

    def data_received(self, data: bytes) -> None:
        """Implement `asyncio.Protocol`."""
        self._buffer += data
        self.has_response = True
        is_full = len(self._buffer) > _MAX_BUFFERED_BYTES
        if is_full and not self._is_reading_paused and not self._open_transport.is_closing():
            self._is_reading_paused = True
            self._open_transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """Implement `asyncio.Protocol`."""
        self._is_lost, self._error = True, error
        self._wake()

    def pause_writing(self) -> None:
        """Implement `asyncio.Protocol`."""
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        """Implement `asyncio.Protocol`."""
        self._is_writing_paused = False
        self._wake()

    # httpcore.AsyncNetworkStream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Implement `httpcore.AsyncNetworkStream`."""
        while not self._buffer:
            if self._is_lost:
                self.is_exhausted = True
                if self._error is not None:
                    raise httpcore.ReadError(str(self._error)) from self._error
                return b""
            if self.tunnel_deadline is None:
                await self._wait(timeout, httpcore.ReadTimeout)
            else:
                await self._wait_for_tunnel(self.tunnel_deadline)
        if self.bytes_before_head is not None:
            self._limit_head()
        data = bytes(self._buffer[:max_bytes])
        del self._buffer[:max_bytes]
        if self._is_reading_paused and len(self._buffer) < _MAX_BUFFERED_BYTES:
            self._is_reading_paused = False
            if not self._open_transport.is_closing():
                self._open_transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Implement `httpcore.AsyncNetworkStream`. If the response begins meanwhile, httpcore reads that instead."""
        progress = PROGRESS.get(None)
        if progress is not None and progress.stream is not self:
            progress.stream, self.has_response, self.bytes_before_head = self, False, 0
        if not buffer:
            return
        if not self._is_lost and not self._open_transport.is_closing():
            self._open_transport.write(buffer)
            while self._is_writing_paused and not self._buffer and not self._is_lost:
                await self._wait(timeout, httpcore.WriteTimeout)
        if self._is_lost or self._is_writing_paused:
            raise httpcore.WriteError("the upstream does not read the request")

    async def aclose(self) -> None:
        """Implement `httpcore.AsyncNetworkStream`."""
        self.abort()
        await asyncio.sleep(0)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> "NetworkStream":
        """Implement `httpcore.AsyncNetworkStream`."""
        try:
            async with asyncio.timeout(timeout):
                with failures.step(failures.HANDSHAKE):
                    transport = await self._loop.start_tls(
                        self._open_transport, self, ssl_context, server_hostname=server_hostname
                    )
            if transport is None:
                raise ConnectionResetError("the connection closed immediately")
            self._transport = transport
            self.tunnel_deadline = None
        except BaseException as error:
            self.abort()
            if isinstance(error, TimeoutError):
                raise httpcore.ConnectTimeout("connecting timed out") from error
            if isinstance(error, OSError):  # ssl.SSLError is one
                raise httpcore.ConnectError(str(error)) from error
            raise
        return self

    def get_extra_info(self, info: str) -> Any:
        """Implement `httpcore.AsyncNetworkStream`. An idle connection that is readable is not used again."""
        if info == "is_readable":
            return not self.is_quiet()
        return self._open_transport.get_extra_info(info)

    @property
    def _open_transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def _limit_head(self) -> None:
        assert self.bytes_before_head is not None
        self.bytes_before_head += len(self._buffer)
        if self.bytes_before_head > _MAX_HEAD_BYTES:
            raise httpcore.RemoteProtocolError(f"more than {_MAX_HEAD_BYTES} bytes of headers")

    async def _wait_for_tunnel(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                with failures.step(failures.TUNNEL):
                    await self._wait(None, httpcore.ReadTimeout)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("connecting timed out") from error

    async def _wait(self, timeout: float | None, late: type[Exception]) -> None:
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            raise late("the upstream did not respond in time") from None
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
