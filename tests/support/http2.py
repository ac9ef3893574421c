"""Raw HTTP/2: frames that a gRPC client never sends. Encodes each header as a literal, without Huffman codes.

Reads frames without decoding headers; a normal client checks the service's state afterwards.
"""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from chatrpc_server.settings import Address

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4

Fields = Iterable[tuple[bytes, bytes]]
METHOD = b"/chatrpc.v1.ChatCompletionService/CreateChatCompletion"


def frame(kind: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """Encode one frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _string(text: bytes) -> bytes:
    """Encode a string of HPACK without Huffman codes."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, prefix = len(text) - 127, bytearray([127])
    while rest >= 128:
        prefix.append(rest % 128 + 128)
        rest //= 128
    return bytes(prefix) + bytes([rest]) + text


def block(fields: Fields) -> bytes:
    """Encode headers as one block of literals that no table remembers."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)


def request_fields(**changes: bytes | None) -> list[tuple[bytes, bytes]]:
    """Return the headers of a valid gRPC request. A change replaces a value by its name; None removes the header.

    A name's underscore stands for `-`; `path`, `method`, `scheme` and `authority` are the pseudo headers.
    """
    fields: dict[str, bytes | None] = {
        "method": b"POST",
        "scheme": b"http",
        "path": METHOD,
        "authority": b"localhost",
        "content_type": b"application/grpc",
        "te": b"trailers",
        **changes,
    }
    pseudo = {"method", "scheme", "path", "authority"}
    names = {name: f":{name}" if name in pseudo else name.replace("_", "-") for name in fields}
    return [(names[name].encode(), value) for name, value in fields.items() if value is not None]


def headers(stream: int, fields: Fields, flags: int = END_HEADERS) -> bytes:
    """Encode a HEADERS frame."""
    return frame(HEADERS, stream, block(fields), flags)


def message(body: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """Encode a gRPC message. `length`: the length that its prefix has, if not that of the body."""
    return struct.pack(">BI", compressed, len(body) if length is None else length) + body


def data(stream: int, payload: bytes, flags: int = END_STREAM) -> bytes:
    """Encode a DATA frame."""
    return frame(DATA, stream, payload, flags)


@dataclass(frozen=True)
class Frame:
    """One frame that was received."""

    kind: int
    flags: int
    stream: int
    payload: bytes


@dataclass(frozen=True)
class Connection:
    """A connection of which the test writes every byte."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *pieces: bytes) -> None:
        """Send bytes; ignore that the service has closed the connection."""
        if self.writer.is_closing():  # asyncio would log each further write
            return
        with suppress(ConnectionError):
            self.writer.write(b"".join(pieces))
            await self.writer.drain()

    async def receive(self) -> Frame | None:
        """Return the next frame; acknowledge settings and pings. None: the connection is closed."""
        try:
            head = await self.reader.readexactly(9)
            size, kind, flags, stream = int.from_bytes(head[:3]), head[3], head[4], int.from_bytes(head[5:])
            payload = await self.reader.readexactly(size)
        except (ConnectionError, asyncio.IncompleteReadError):
            return None
        if kind in (SETTINGS, PING) and not flags & ACK:
            await self.send(frame(kind, payload=payload if kind == PING else b"", flags=ACK))
        return Frame(kind, flags, stream, payload)

    async def receive_until(self, *kinds: int, stream: int | None = None) -> Frame | None:
        """Return the next frame of these kinds (and stream). None: the connection was closed before."""
        while received := await self.receive():
            if received.kind in kinds and stream in (None, received.stream):
                return received
        return None

    async def pong(self) -> bool:
        """Send a ping and await its acknowledgement: the service has read all before it. False: closed."""
        await self.send(frame(PING, payload=b"are you?"))
        while received := await self.receive():
            if received.kind == PING and received.flags & ACK:
                return True
        return False


@asynccontextmanager
async def connect(
    address: Address, *, preface: bool = True, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Connection]:
    """Connect; send the preface and empty settings if wanted."""
    name = "localhost" if tls else None
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=tls, server_hostname=name)
    connection = Connection(reader, writer)
    try:
        if preface:
            await connection.send(PREFACE, frame(SETTINGS))
        yield connection
    finally:
        writer.close()
        with suppress(ConnectionError, ssl.SSLError, TimeoutError):  # the last: no reply to the end of TLS
            await writer.wait_closed()
