"""The bytes decide what a response is: any content type, any status of success, and framing that does not end."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import pytest_asyncio

from support import Exchange, Script, Service, collect, failure, http, request, service

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNARY, STREAM = "CreateChatCompletion", "CreateChatCompletionStream"
LABELS = (
    "application/json",
    "Application/JSON; charset=utf-8",
    "text/event-stream",
    "text/html; charset=utf-8",
    "text/plain",
    "application/x-ndjson",
    "application/octet-stream",
    "",
    ";;",
)


def chunk(content: str, reason: str | None = None) -> bytes:
    source = {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": reason}]}
    return json.dumps(source).encode()


CHUNKS = [chunk("Hel"), chunk("lo", "stop")]
WHOLE = json.dumps(
    {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}
).encode()
ONE_CLIENT = pytest.mark.parametrize("chat", ["builtin"], indirect=True)
"""For tests of code that does not depend on the HTTP client."""
DONE = b"data: [DONE]\n\n"
FRAMES: dict[str, Callable[[bytes, int], bytes]] = {
    "events": lambda one, _: b"data: %b\n\n" % one,
    "events without blank lines": lambda one, _: b"data: %b\n" % one,
    "lines": lambda one, _: one + b"\n",
    "array": lambda one, number: b"%b%b" % (b"," if number else b"[", one),
}
BODIES = {name: b"".join(map(frame, CHUNKS, (0, 1))) for name, frame in FRAMES.items()}
BODIES |= {"JSON": WHOLE, "JSON and [DONE]": WHOLE + b"\n\n" + DONE, "events and [DONE]": BODIES["events"] + DONE}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Script]:
    async with Script() as script:
        yield script


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["builtin", "httpx"])
async def chat(upstream: Script, request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    limits = {"finished_timeout_seconds": 0.05, "max_event_bytes": 1 << 19, "max_response_bytes": 1 << 20}
    settings = {"http_client": request.param, "max_retries": 0, **limits}
    async with service(upstream.base_url, upstream=settings) as running:
        yield running


async def text_of(chat: Service, rpc: str) -> str:
    """Return the text of a call, which must succeed before its deadline."""
    call = getattr(chat.stub, rpc)(request(), timeout=30)
    if rpc == UNARY:
        return str((await call).choices[0].message.content)
    return "".join(choice.delta.content for message in await collect(call) for choice in message.choices)


@ONE_CLIENT
@pytest.mark.parametrize("rpc", [UNARY, STREAM])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_any_label(upstream: Script, chat: Service, body: bytes, rpc: str) -> None:
    for label in LABELS:
        upstream.respond_with(http(body, content_type=label))
        assert await text_of(chat, rpc) == "Hello", label


@pytest.mark.parametrize("label", ["application/json", "text/html", ""])
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
async def test_chunks_are_delivered_as_they_come(
    upstream: Script, chat: Service, frame: Callable[[bytes, int], bytes], label: str
) -> None:
    """The upstream sends the second chunk only after the caller has the first one."""
    arrived = asyncio.Event()

    async def respond(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nconnection: close\r\n\r\n" % label.encode())
        await exchange.send(frame(CHUNKS[0], 0))
        await arrived.wait()
        await exchange.send(frame(CHUNKS[1], 1))
        exchange.writer.close()

    upstream.respond_with(respond)
    texts = []
    async for message in chat.stub.CreateChatCompletionStream(request(), timeout=30):
        texts.append(message.choices[0].delta.content)
        arrived.set()
    assert texts == ["Hel", "lo"]


@ONE_CLIENT
@pytest.mark.parametrize("rpc", [UNARY, STREAM])
async def test_any_status_of_success(upstream: Script, chat: Service, rpc: str) -> None:
    for status in ("200 OK", "201 Created", "202 Accepted", "203 Non-Authoritative", "206 Partial", "299 Odd"):
        for body in (WHOLE, BODIES["events"]):
            upstream.respond_with(http(body, status))
            assert await text_of(chat, rpc) == "Hello", status


@pytest.mark.parametrize("rpc", [UNARY, STREAM])
async def test_a_success_without_a_body(upstream: Script, chat: Service, rpc: str) -> None:
    upstream.respond_with(b"HTTP/1.1 204 No Content\r\n\r\n")
    failed = await failure(getattr(chat.stub, rpc)(request(), timeout=30))
    assert failed.reason in ("UPSTREAM_INVALID_RESPONSE", "UPSTREAM_TRUNCATED")


HEADS = {
    "chunked": b"transfer-encoding: chunked",
    "too long": b"content-length: 999999",
    "until it closes": b"connection: close",
}
LARGE = WHOLE.replace(b"Hello", b"Hello" * 50_000)


def kept_open(head: bytes, *pieces: bytes | float, end: str = "") -> Callable[[Exchange], Any]:
    """Return a response whose framing does not end: open until the service closes, or ended by `end`."""

    async def respond(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % head)
        for piece in pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                await exchange.send(b"%x\r\n%b\r\n" % (len(piece), piece) if b"chunked" in head else piece)
        if end == "close":
            exchange.writer.close()
        elif end == "garbage":
            await exchange.send(b"no chunk\r\n")
        else:
            await exchange.closed_by_peer()

    return respond


@pytest.mark.parametrize("rpc", [UNARY, STREAM])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
async def test_whole_json_ends_a_response(upstream: Script, chat: Service, head: bytes, rpc: str) -> None:
    for body in (WHOLE, WHOLE + b"\n" * 200, WHOLE + b"\n\n" + DONE, BODIES["lines"], BODIES["array"] + b"]"):
        upstream.respond_with(kept_open(head, body))
        assert await text_of(chat, rpc) == "Hello", body
    upstream.respond_with(kept_open(head, LARGE[:40_000], LARGE[40_000:]))
    assert await text_of(chat, rpc) == "Hello" * 50_000
    upstream.respond_with(kept_open(head, b'{"error":{"message":"m","code":429}}'))
    assert (await failure(getattr(chat.stub, rpc)(request(), timeout=30))).message == "m"


@pytest.mark.parametrize("rpc", [UNARY, STREAM])
async def test_a_fault_after_whole_json_fails_nothing(upstream: Script, chat: Service, rpc: str) -> None:
    for head, end in ((HEADS["chunked"], "close"), (HEADS["chunked"], "garbage"), (HEADS["too long"], "close")):
        upstream.respond_with(kept_open(head, WHOLE, end=end))
        assert await text_of(chat, rpc) == "Hello", (head, end)
        upstream.respond_with(kept_open(head, WHOLE[:-5], end=end))
        failed = await failure(getattr(chat.stub, rpc)(request(), timeout=30))
        assert failed.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)


@pytest.mark.parametrize("rpc", [UNARY, STREAM])
async def test_a_pause_behind_a_brace_is_no_end(upstream: Script, chat: Service, rpc: str) -> None:
    at = WHOLE.index(b"}") + 1
    upstream.respond_with(kept_open(HEADS["chunked"], WHOLE[:at], 0.2, WHOLE[at:]))
    assert await text_of(chat, rpc) == "Hello"


@ONE_CLIENT
@pytest.mark.parametrize("rpc", [UNARY, STREAM])
async def test_a_limit_holds_for_any_label(upstream: Script, chat: Service, rpc: str) -> None:
    for label in ("application/json", "text/event-stream", "text/html"):
        upstream.respond_with(http(WHOLE.replace(b"Hello", b"x" * (1 << 20)), content_type=label))
        failed = await failure(getattr(chat.stub, rpc)(request(), timeout=30))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "UPSTREAM_INVALID_RESPONSE")
        assert "raise upstream.max_response_bytes" in failed.message


@ONE_CLIENT
@pytest.mark.parametrize("rpc", [UNARY, STREAM])
@pytest.mark.parametrize("label", ["application/json", "text/event-stream", ""])
async def test_the_bytes_show_an_html_page(upstream: Script, chat: Service, label: str, rpc: str) -> None:
    upstream.respond_with(http(b"\n<html><body>busy</body></html>", content_type=label))
    failed = await failure(getattr(chat.stub, rpc)(request(), timeout=30))
    assert (failed.reason, failed.message) == ("UPSTREAM_INVALID_RESPONSE", "the upstream's response is an HTML page")
    assert "busy" in failed.details["UpstreamError"].raw_body
