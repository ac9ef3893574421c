"""A caller over raw HTTP/2 that sends parts of messages, and reads no more than it wants."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chatrpc_server.settings import Address
from support import http2

_INITIAL_WINDOW_SIZE = 4
"""The setting's identifier in HTTP/2."""
_WINDOW = 65_535
_FRAME_BYTES = 16_384


class Caller:
    """A connection with its streams. It respects the service's flow control windows, and opens none of its own."""

    def __init__(self, connection: http2.Connection) -> None:
        self._connection = connection
        self._next_stream = 1
        self._initial_window = _WINDOW
        self._windows = {0: _WINDOW}
        self._changed = asyncio.Event()
        self.ended: set[int] = set()
        """The streams that the service has ended."""

    async def start(self, **fields: bytes) -> int:
        """Start a call; return its stream. `fields`: see `http2.request_fields`."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._windows[stream] = self._initial_window
        await self._connection.send(http2.headers(stream, http2.request_fields(**fields)))
        return stream

    async def send(self, stream: int, payload: bytes, *, end: bool = False) -> None:
        """Send bytes of a message as the windows allow; stop if the service ends the stream."""
        rest = memoryview(payload)
        while rest and stream not in self.ended:
            size = min(len(rest), _FRAME_BYTES, self._windows[0], self._windows[stream])
            if size <= 0:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._windows[0] -= size
            self._windows[stream] -= size
            await self._connection.send(http2.data(stream, bytes(rest[:size]), flags=0))
            rest = rest[size:]
        if end:
            await self._connection.send(http2.data(stream, b""))

    async def reset(self, stream: int) -> None:
        """Cancel a call."""
        await self._connection.send(http2.frame(http2.RST_STREAM, stream, struct.pack(">I", 8)))

    async def read(self) -> None:
        """Follow windows and ends of streams until the connection closes."""
        while frame := await self._connection.receive():
            if frame.kind == http2.WINDOW_UPDATE:
                self._windows[frame.stream] = self._windows.get(frame.stream, 0) + int.from_bytes(frame.payload)
            elif frame.kind == http2.SETTINGS and not frame.flags & http2.ACK:
                for identifier, value in struct.iter_unpack(">HI", frame.payload):
                    if identifier == _INITIAL_WINDOW_SIZE:
                        for stream in self._windows.keys() - {0}:
                            self._windows[stream] += value - self._initial_window
                        self._initial_window = value
            elif frame.kind == http2.RST_STREAM or (frame.kind == http2.HEADERS and frame.flags & http2.END_STREAM):
                self.ended.add(frame.stream)
            self._changed.set()

    async def all_ended(self, streams: set[int]) -> None:
        """Wait until the service has ended these streams."""
        async with asyncio.timeout(60):
            while not streams <= self.ended:
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def calling(address: Address, *, window: int = _WINDOW) -> AsyncIterator[Caller]:
    """A caller. `window`: the bytes of each response that it takes."""
    async with http2.connect(address, preface=False) as connection:
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
        await connection.send(http2.PREFACE, http2.frame(http2.SETTINGS, payload=settings))
        caller = Caller(connection)
        reading = asyncio.create_task(caller.read())
        try:
            yield caller
        finally:
            reading.cancel()
            await asyncio.wait({reading})
