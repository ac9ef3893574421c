"""An upstream with the fault that the model's name requests, byte by byte: the rows of docs/faults.md.

Each fault has its response to a unary request and to a stream; `ok`, `long` and `large` are sound. Run as a program it
prints its base URL and serves on loopback until it is killed.
"""

import asyncio
import gzip
import json
import socket
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import trustme

from support import Exchange, Script, http

PIECES = ("0 ", "1 ")
"""The text of a sound response, chunk by chunk; a stream with a fault has sent them before it."""
WHOLE_TEXT = "".join(PIECES)
RETRY_AFTER_SECONDS, LONG_RETRY_AFTER_SECONDS = 1, 3
MINUTES_SECONDS = 240
ENOUGH = b"x" * 65536


def event(piece: dict[str, object]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(piece).encode() + b"\n\n"


def chunk(text: str, finish_reason: str | None = None) -> bytes:
    """One chunk of text as an event."""
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]})


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
END = event({"choices": [], "usage": USAGE}) + b"data: [DONE]\n\n"
STREAM = (chunk(PIECES[0]), chunk(PIECES[1], "stop"), END)
WHOLE = json.dumps(
    {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": WHOLE_TEXT}, "finish_reason": "stop"}],
        "usage": USAGE,
    }
).encode()
ERROR = json.dumps({"error": {"message": "The engine is on fire.", "type": "server_error", "code": None}}).encode()


class ResponseWriter:
    """The writer of one response, in HTTP/1.1 with chunked framing."""

    def __init__(self, exchange: Exchange, attempt: int) -> None:
        self.exchange = exchange
        self.attempt = attempt
        """Number of the attempt of its call, from 1."""
        self.streaming: bool = json.loads(exchange.body).get("stream", False)
        self.whole = b"".join(STREAM) if self.streaming else WHOLE
        """The body of a sound response."""

    async def head(self, content_type: str = "", *more: str) -> None:
        """Send the headers of a success."""
        content_type = content_type or ("text/event-stream" if self.streaming else "application/json")
        lines = ("HTTP/1.1 200 OK", f"content-type: {content_type}", "transfer-encoding: chunked", *more)
        await self.exchange.send("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def body(self, *pieces: bytes) -> None:
        """Send parts of the body, each separately."""
        for piece in pieces:
            await self.exchange.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            await asyncio.sleep(0.001)  # so that the other side reads it separately

    async def begun(self) -> None:
        """Send a sound beginning: some chunks, or half of a body."""
        await self.head()
        if self.streaming:
            await self.body(*map(chunk, PIECES))
        else:
            await self.body(WHOLE[: len(WHOLE) // 2])

    async def finished(self) -> None:
        """Send a whole stream without its end, for either RPC."""
        await self.head("text/event-stream")
        await self.body(*STREAM[:-1])

    async def keep_alive(self, piece: bytes) -> None:
        """Repeat a piece 50 times a second until the other side closes."""
        with suppress(ConnectionError):
            while not self.exchange.reader.at_eof():
                await self.body(piece)
                await asyncio.sleep(0.02)

    async def end(self) -> None:
        """Send the end of the body, which is valid HTTP."""
        await self.exchange.send(b"0\r\n\r\n")

    async def sound(self) -> None:
        """Send a whole response without any fault."""
        await self.head()
        await self.body(*(STREAM if self.streaming else (WHOLE,)))
        await self.end()

    async def status(self, status: str, body: bytes = b"{}", **headers: str) -> None:
        """Send an error status."""
        await self.exchange.send(http(body, status, **headers))

    async def silence(self) -> None:
        """Send nothing more until the other side closes."""
        await self.exchange.closed_by_peer()

    async def endlessly(self, piece: bytes) -> None:
        """Repeat a piece until the other side closes."""
        with suppress(ConnectionError):
            while not self.exchange.reader.at_eof():
                await self.body(piece)


Behaviour = Callable[[ResponseWriter], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """One row: the behaviour of the upstream, in words and in code."""

    name: str
    does: str
    response: Behaviour


FAULTS: dict[str, Fault] = {}


def _fault(name: str, does: str) -> Callable[[Behaviour], Behaviour]:
    def add(response: Behaviour) -> Behaviour:
        FAULTS[name] = Fault(name, does, response)
        return response

    return add


@_fault("proxy-407", "is behind a proxy that rejects the service's password with 407")
@_fault("proxy-503", "is behind a proxy that cannot reach it and responds 503")
@_fault("bad-certificate", "presents a certificate of an unknown authority")
@_fault("refused", "refuses the connection")
@_fault("unconnectable", "does not respond to a connection attempt")
async def _never_reached(response: ResponseWriter) -> None:
    raise AssertionError("a request arrived")


@_fault("reset-before-headers", "receives the request, then resets the connection")
async def _(response: ResponseWriter) -> None:
    response.exchange.reset()


@_fault("silent-before-headers", "receives the request, then stays silent")
async def _(response: ResponseWriter) -> None:
    await response.silence()


@_fault("not-http", "responds with bytes that are not HTTP")
async def _(response: ResponseWriter) -> None:
    await response.exchange.send(b"\x16\x03\x01\x00\xa5 what is this?\r\n\r\n")
    await response.silence()


@_fault("silent-after-headers", "sends headers, then stays silent")
async def _(response: ResponseWriter) -> None:
    await response.head()
    await response.silence()


@_fault("reset-after-headers", "sends headers, then resets the connection")
async def _(response: ResponseWriter) -> None:
    await response.head()
    response.exchange.reset()


@_fault("empty-then-ok", "responds 200 with an empty body, then validly")
async def _(response: ResponseWriter) -> None:
    await (response.status("200 OK", b"") if response.attempt == 1 else response.sound())


@_fault("silent-after-chunks", "sends a part of the response, then stays silent")
async def _(response: ResponseWriter) -> None:
    await response.begun()
    await response.silence()


@_fault("reset-after-chunks", "sends a part of the response, then resets the connection")
async def _(response: ResponseWriter) -> None:
    await response.begun()
    response.exchange.reset()


@_fault("cut-in-event", "closes the body cleanly in the middle of an event")
async def _(response: ResponseWriter) -> None:
    await response.begun()
    if response.streaming:
        await response.body(chunk("and more")[:-20])
    await response.end()


@_fault("truncated", "closes the body cleanly, without finish_reason and [DONE]")
async def _(response: ResponseWriter) -> None:
    await response.begun()
    await response.end()


@_fault("error-in-stream", "sends a part of the response, then an error object")
async def _(response: ResponseWriter) -> None:
    await response.begun()
    await response.body(b"data: " + ERROR + b"\n\n")
    await response.end()


@_fault("error-after-finish", "finishes a stream, then sends an error object")
async def _(response: ResponseWriter) -> None:
    await response.finished()
    await response.body(b"data: " + ERROR + b"\n\n")
    await response.end()


@_fault("reset-after-finish", "finishes a stream, then resets the connection")
async def _(response: ResponseWriter) -> None:
    await response.finished()
    response.exchange.reset()


@_fault(
    "finished-keep-alive", "finishes a stream, then sends only comments; `upstream.finished_timeout_seconds` ends it"
)
async def _(response: ResponseWriter) -> None:
    await response.finished()
    await response.keep_alive(b": still here\n\n")


@_fault("garbage-event", "sends a part of the response, then an event that is not JSON")
async def _(response: ResponseWriter) -> None:
    await response.begun()
    await response.body(b"data: \x00\xff{{{ garbage\n\n")
    await response.end()


@_fault("garbage-framing", "sends a part of the response, then violates HTTP's framing")
async def _(response: ResponseWriter) -> None:
    await response.begun()
    await response.exchange.send(b"no length at all\r\n")
    await response.silence()


@_fault("endless-line", "sends a line without an end")
async def _(response: ResponseWriter) -> None:
    await response.head()
    await response.body(b"data: ")
    await response.endlessly(ENOUGH)


@_fault("endless-body", "sends whitespace or comments without an end")
async def _(response: ResponseWriter) -> None:
    await response.head()
    await response.endlessly(b": still here\n\n" * 100 if response.streaming else b" " * len(ENOUGH))


@_fault("endless-keep-alive", "sends a part of the response, then only comments")
async def _(response: ResponseWriter) -> None:
    await response.begun()
    await response.keep_alive(b": still here\n\n" if response.streaming else b" ")


@_fault("gzip", "compresses, although the request excludes it")
async def _(response: ResponseWriter) -> None:
    await response.head("", "content-encoding: gzip")
    await response.body(gzip.compress(response.whole))
    await response.end()


@_fault("html", "responds 200 with an HTML page")
async def _(response: ResponseWriter) -> None:
    await response.head("text/html; charset=utf-8")
    await response.body(b"<!DOCTYPE html><title>Welcome</title>")
    await response.end()


@_fault("mislabelled", "sends a valid response as application/octet-stream")
async def _(response: ResponseWriter) -> None:
    await response.head("application/octet-stream")
    await response.body(response.whole)
    await response.end()


@_fault("slow-bytes", "sends a valid response byte by byte")
async def _(response: ResponseWriter) -> None:
    await response.head()
    await response.body(*(bytes([byte]) for byte in response.whole))
    await response.end()


@_fault("too-slow-bytes", "sends byte by byte, too slowly for the first-chunk limit")
async def _(response: ResponseWriter) -> None:
    await response.head()
    with suppress(ConnectionError):
        for byte in response.whole:
            if response.exchange.reader.at_eof():
                break
            await response.body(bytes([byte]))
            await asyncio.sleep(0.1)


@_fault("429", "responds 429 each time")
async def _(response: ResponseWriter) -> None:
    await response.status("429 Too Many Requests")


@_fault("429-retry-after", "responds 429 with Retry-After: 1, then validly")
async def _(response: ResponseWriter) -> None:
    if response.attempt == 1:
        await response.status("429 Too Many Requests", retry_after=str(RETRY_AFTER_SECONDS))
    else:
        await response.sound()


@_fault("429-retry-long", "responds 429 with a Retry-After longer than its limit")
async def _(response: ResponseWriter) -> None:
    await response.status("429 Too Many Requests", retry_after=str(LONG_RETRY_AFTER_SECONDS))


@_fault("429-retry-late", "responds 429 with a Retry-After past the deadline")
async def _(response: ResponseWriter) -> None:
    await response.status("429 Too Many Requests", retry_after="3600")


@_fault("429-quota", "responds 429 insufficient_quota")
async def _(response: ResponseWriter) -> None:
    await response.status("429 Too Many Requests", b'{"error": {"message": "Pay.", "code": "insufficient_quota"}}')


@_fault("429-quota-gzip", "responds 429 insufficient_quota, compressed")
async def _(response: ResponseWriter) -> None:
    body = json.dumps({"error": {"message": "pay first", "code": "insufficient_quota"}}).encode()
    await response.status("429 Too Many Requests", gzip.compress(body), content_encoding="gzip")


@_fault("429-wait-in-body", "responds 429 with a wait of 20 ms in its message, then validly")
async def _(response: ResponseWriter) -> None:
    if response.attempt == 1:
        body = b'{"error": {"message": "Rate limit reached. Please try again in 20ms."}}'
        await response.status("429 Too Many Requests", body)
    else:
        await response.sound()


@_fault("500-context", "responds 500 with words about the length of the context")
async def _(response: ResponseWriter) -> None:
    body = json.dumps({"error": {"message": "the request exceeds the available context size"}}).encode()
    await response.status("500 Internal Server Error", body)


@_fault("401", "responds 401")
async def _(response: ResponseWriter) -> None:
    await response.status("401 Unauthorized")


@_fault("500", "responds 500 each time")
async def _(response: ResponseWriter) -> None:
    await response.status("500 Internal Server Error", ERROR)


@_fault("503-then-ok", "responds 503, then validly")
async def _(response: ResponseWriter) -> None:
    await (response.status("503 Service Unavailable") if response.attempt == 1 else response.sound())


@_fault("error-body", "responds 200 with an error object as its body")
async def _(response: ResponseWriter) -> None:
    await response.status("200 OK", ERROR)


@_fault("error-elsewhere", "responds 200 with an error that is not under `error` (MiniMax)")
async def _(response: ResponseWriter) -> None:
    body = {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}
    await response.exchange.send(http(json.dumps(body).encode()))


@_fault("redirect", "responds with a redirect")
async def _(response: ResponseWriter) -> None:
    await response.status("307 Temporary Redirect", b"", location="/v2/chat/completions")


async def _after_minutes(response: ResponseWriter) -> None:
    await asyncio.sleep(MINUTES_SECONDS)
    await response.sound()


async def _sound_stream(response: ResponseWriter, pieces: Sequence[str], pause_seconds: float) -> None:
    await response.head()
    for piece in pieces:
        await response.body(chunk(piece))
        await asyncio.sleep(pause_seconds)
    await response.body(chunk("", "stop"), END)
    await response.end()


async def _long(response: ResponseWriter) -> None:
    """Send a stream of two seconds, or a whole response after one."""
    if response.streaming:
        await _sound_stream(response, LONG_PIECES, 0.05)
    else:
        await asyncio.sleep(1)
        await response.sound()


async def _large(response: ResponseWriter) -> None:
    """Send a stream of more bytes than the buffers on the way can hold."""
    await (_sound_stream(response, LARGE_PIECES, 0) if response.streaming else response.sound())


LONG_PIECES = [f"{number} " for number in range(40)]
LARGE_PIECES = [f"{number:1000} " for number in range(1000)]
SOUND = {"ok": ResponseWriter.sound, "long": _long, "large": _large}
STREAM_TEXTS = {"ok": WHOLE_TEXT, "long": "".join(LONG_PIECES), "large": "".join(LARGE_PIECES)}
"""Texts of sound streams. Unary responses, and faulty ones that are complete, have WHOLE_TEXT."""


class Faults(Script):
    """`async with Faults() as upstream:`, and then requests to `upstream.base_url`."""

    def __init__(self, certificate: trustme.LeafCert | None = None) -> None:
        super().__init__(certificate)
        self.exchanges = deque(maxlen=100)  # a long run must not keep them all
        self.attempts: Counter[str] = Counter()
        """Number of attempts by the request id of the call."""

    def choose(self, exchange: Exchange) -> Callable[[Exchange], Awaitable[None]]:
        """Return the response that the model's name requests."""
        model = json.loads(exchange.body)["model"]
        response = SOUND[model] if model in SOUND else {**FAULTS, **SLOW_FAULTS}[model].response
        call = exchange.header(b"x-request-id")
        self.attempts[call] += 1
        return lambda exchange: response(ResponseWriter(exchange, self.attempts[call]))


SLOW_FAULTS = {
    "silent-for-minutes": Fault(
        "silent-for-minutes", "receives the request, stays silent for 4 minutes, then responds validly", _after_minutes
    )
}
"""Faults that take minutes; their rows are for the slow tests."""
UNREACHABLE = ("refused", "unconnectable", "bad-certificate", "proxy-407", "proxy-503")
"""Faults that happen before a request can name them."""


@asynccontextmanager
async def base_url_of(fault: str) -> AsyncIterator[str]:
    """The base URL of an upstream with this fault."""
    if fault in ("refused", "unconnectable"):
        with ExitStack() as stack:
            unused = stack.enter_context(socket.socket())
            unused.bind(("127.0.0.1", 0))  # so that no other process gets the port
            if fault == "unconnectable":
                unused.listen(0)  # one connection may wait; the kernel ignores further ones
                stack.enter_context(socket.create_connection(unused.getsockname()))
            yield f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        return
    if fault.startswith("proxy-"):
        yield "https://127.0.0.1:9/v1"
        return
    certificate = trustme.CA().issue_cert("localhost") if fault == "bad-certificate" else None
    async with Faults(certificate) as upstream:
        yield upstream.base_url


@asynccontextmanager
async def proxy_of(fault: str) -> AsyncIterator[dict[str, str]]:
    """The settings for the proxy of this fault, if it has one."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {fault.removeprefix('proxy-')} x\r\ncontent-length: 0\r\n\r\n".encode())
            await writer.drain()
        writer.close()

    if not fault.startswith("proxy-"):
        yield {}
        return
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    try:
        yield {"proxy": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}
    finally:
        server.close()


async def _main() -> None:
    async with Faults() as upstream:
        print(upstream.base_url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_main())
