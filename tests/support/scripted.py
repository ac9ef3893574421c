"""An upstream that sends scripted bytes."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, MutableSequence

import trustme

Responder = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request at the scripted upstream, and the writer of its response."""

    def __init__(self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head, self.body = head, body
        self.reader, self.writer = reader, writer

    def header(self, name: bytes) -> str:
        """Return a header of the request; its name is in lower case."""
        return self.head.lower().partition(b"\r\n" + name + b": ")[2].partition(b"\r\n")[0].decode()

    async def send(self, *pieces: bytes) -> None:
        """Send each piece in a separate write."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    def reset(self) -> None:
        """Close the connection with RST."""
        self.writer.transport.abort()

    async def closed_by_peer(self) -> None:
        """Wait until the other side has closed."""
        while await self.reader.read(1 << 16):
            pass


class Script:
    """An upstream with a scripted response to each request: raw bytes, or a coroutine that gets the `Exchange`.

    With a certificate it uses TLS.
    """

    def __init__(self, certificate: trustme.LeafCert | None = None) -> None:
        self._tls = None
        if certificate is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            certificate.configure_cert(self._tls)
        self.exchanges: MutableSequence[Exchange] = []
        self.connections = 0
        self.base_url = ""
        self._responses: list[bytes | Responder] = []

    def respond_with(self, *responses: bytes | Responder) -> None:
        """Set the next responses; the last one is repeated."""
        self._responses = list(responses)

    def choose(self, exchange: Exchange) -> bytes | Responder:
        """Return the response to this request."""
        return self._responses.pop(0) if len(self._responses) > 1 else self._responses[0]

    async def __aenter__(self) -> "Script":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        where = "https://localhost" if self._tls else "http://127.0.0.1"
        self.base_url = f"{where}:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for exchange in self.exchanges:
            exchange.writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                exchange = Exchange(head, b"", reader, writer)
                exchange.body = await reader.readexactly(int(exchange.header(b"content-length")))
                self.exchanges.append(exchange)
                response = self.choose(exchange)
                if isinstance(response, bytes):
                    await exchange.send(response)
                    if b"connection: close" in response[:500].lower():
                        break
                else:
                    await response(exchange)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def http(body: bytes, status: str = "200 OK", content_type: str = "application/json", **headers: str) -> bytes:
    """Return a whole HTTP response. Header names have `_` for `-`."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status}", f"content-type: {content_type}", f"content-length: {len(body)}", *lines])
    return head.encode() + b"\r\n\r\n" + body


def sse(*events: bytes, done: bool = True) -> bytes:
    """Return a whole HTTP response that is an event stream of these data payloads."""
    payloads = [*events, b"[DONE]"] if done else events
    return http(b"".join(b"data: " + event + b"\n\n" for event in payloads), content_type="text/event-stream")
