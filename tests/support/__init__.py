"""What the tests share: the service on a loopback channel, and an upstream that sends the bytes it is told to."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, MutableSequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import grpc
import trustme
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details_pb2
from google.rpc.status_pb2 import Status

from chatrpc.v1.chat_error_pb2 import UpstreamError
from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest
from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_server.server import Server
from chatrpc_server.settings import Address, Settings

ANY_PORT = Address("127.0.0.1", 0)


def request(text: str = "Hello!", model: str = "echo", **fields: Any) -> CreateChatCompletionRequest:
    """The shortest request."""
    return CreateChatCompletionRequest(model=model, messages=[ChatMessage(role="user", content=text)], **fields)


@dataclass
class Service:
    """A running server and a way to call it."""

    server: Server
    channel: grpc.aio.Channel
    stub: Any

    def value(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        return sum(
            sample.value
            for metric in self.server.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def settings(base_url: str, **changes: Any) -> Settings:
    """Settings for a test's server. Groups are dicts: `upstream={"max_retries": 0}`."""
    upstream = {
        "base_url": base_url,
        "initial_backoff_seconds": 0.01,
        "max_backoff_seconds": 0.02,
        **changes.pop("upstream", {}),
    }
    return Settings(
        listen=ANY_PORT,
        metrics_listen=ANY_PORT,
        upstream=upstream,
        models=changes.pop("models", ["echo"]),
        drain={"delay_seconds": 0, "grace_seconds": 1, **changes.pop("drain", {})},
        **changes,
    )


@asynccontextmanager
async def service(base_url: str, **changes: Any) -> AsyncIterator[Service]:
    """The service in front of that upstream, and a channel to it."""
    server = Server(settings(base_url, **changes))
    await server.start()
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", 64 << 20),
        ("grpc.max_send_message_length", 64 << 20),
    ]
    try:
        async with grpc.aio.insecure_channel(str(server.address), options=options) as channel:
            yield Service(server, channel, ChatCompletionServiceStub(channel))
    finally:
        await server.stop()


@dataclass
class Outcome:
    """How a call ended: the status, its details by type name, and the messages that had arrived."""

    code: grpc.StatusCode
    message: str
    details: dict[str, Any]
    trailers: dict[str, str | bytes]
    messages: list[Any] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """ErrorInfo.reason; nothing for a success."""
        return "" if self.code is grpc.StatusCode.OK else str(self.details["ErrorInfo"].reason)


async def collect(stream: Any) -> list[Any]:
    """All messages of a stream that is expected to end well."""
    return [message async for message in stream]


async def failure(call: Any) -> Outcome:
    """The outcome of a call, unary or streaming, that is expected to fail."""
    ended = await outcome(call)
    assert ended.code is not grpc.StatusCode.OK, "the call was expected to fail"
    return ended


async def outcome(call: Any) -> Outcome:
    """What becomes of a call, unary or streaming."""
    messages: list[Any] = []
    try:
        if hasattr(call, "__aiter__"):
            async for chunk in call:
                messages.append(chunk)
        else:
            messages.append(await call)
    except grpc.aio.AioRpcError as error:
        return _failed(error, messages)
    return Outcome(grpc.StatusCode.OK, "", {}, {}, messages)


def _failed(error: grpc.aio.AioRpcError, chunks: list[Any]) -> Outcome:
    trailers = dict(error.trailing_metadata() or ())
    details: dict[str, Message] = {}
    if "grpc-status-details-bin" in trailers:
        status = Status.FromString(trailers["grpc-status-details-bin"])
        # rpc_status.from_call of every gRPC library refuses anything else.
        assert (status.code, status.message) == (error.code().value[0], error.details())
        kinds = [details_pb2.ErrorInfo, details_pb2.RetryInfo, details_pb2.BadRequest, details_pb2.QuotaFailure]
        for packed in status.details:
            for kind in (*kinds, details_pb2.RequestInfo, UpstreamError):
                message = kind()
                if packed.Unpack(message):
                    assert kind.DESCRIPTOR.name not in details, "each detail at most once"
                    details[kind.DESCRIPTOR.name] = message
        assert len(details) == len(status.details)
    travelling = {**trailers, "grpc-message": quote(error.details() or ""), "grpc-status": "13"}
    size = sum(
        # 32 more for each, as HTTP/2 counts a header list (RFC 9113, 6.5.2); bytes go as base64.
        32 + len(key) + (-(-len(value) // 3) * 4 if isinstance(value, bytes) else len(value))
        for key, value in travelling.items()
    )
    assert size <= 8192, f"{size} bytes of trailers are more than some clients take"
    return Outcome(error.code(), error.details() or "", details, trailers, chunks)


Answer = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request at the scripted upstream, and the pen to answer it with."""

    def __init__(self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head, self.body = head, body
        self.reader, self.writer = reader, writer

    def header(self, name: bytes) -> str:
        """A header of the request; its name in lower case."""
        return self.head.lower().partition(b"\r\n" + name + b": ")[2].partition(b"\r\n")[0].decode()

    async def send(self, *pieces: bytes) -> None:
        """Sends each piece in a write of its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    def reset(self) -> None:
        """Ends the connection with RST."""
        self.writer.transport.abort()

    async def closed_by_peer(self) -> None:
        """Waits until the other side has closed."""
        while await self.reader.read(1 << 16):
            pass


class Script:
    """An upstream that answers each request as told: with raw bytes, or by a coroutine that gets the `Exchange`.

    With a certificate it speaks TLS.
    """

    def __init__(self, certificate: trustme.LeafCert | None = None) -> None:
        self._tls = None
        if certificate is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            certificate.configure_cert(self._tls)
        self.exchanges: MutableSequence[Exchange] = []
        self.connections = 0
        self.base_url = ""
        self._answers: list[bytes | Answer] = []

    def answers(self, *answers: bytes | Answer) -> None:
        """What comes next; the last one is repeated."""
        self._answers = list(answers)

    def choose(self, exchange: Exchange) -> bytes | Answer:
        """The answer to this request."""
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

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
                answer = self.choose(exchange)
                if isinstance(answer, bytes):
                    await exchange.send(answer)
                    if b"connection: close" in answer[:500].lower():
                        break
                else:
                    await answer(exchange)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def http(body: bytes, status: str = "200 OK", content_type: str = "application/json", **headers: str) -> bytes:
    """A whole HTTP response. Header names with `_` for `-`."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status}", f"content-type: {content_type}", f"content-length: {len(body)}", *lines])
    return head.encode() + b"\r\n\r\n" + body


def sse(*events: bytes, done: bool = True) -> bytes:
    """A whole HTTP response that is an event stream of these data payloads."""
    payloads = [*events, b"[DONE]"] if done else events
    return http(b"".join(b"data: " + event + b"\n\n" for event in payloads), content_type="text/event-stream")
