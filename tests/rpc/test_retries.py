"""Which errors are retried, how often, and which never are."""

import asyncio

import grpc
import pytest

from chatrpc_echo import Echo
from support import Exchange, Script, Service, collect, failure, http, outcome, request, rested, service, sse
from support.faults import chunk

OK = http(b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}')
STREAM = sse(b'{"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}')
RPCS = [("CreateChatCompletion", OK), ("CreateChatCompletionStream", STREAM)]
INVALID_HTTP = {
    "no HTTP": b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n",
    "two lengths": OK.replace(b"content-length", b"content-length: 1\r\ncontent-length"),
    "a large head": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000,
    "a chunk without a size": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno size\r\n",
}
rpcs = pytest.mark.parametrize(("rpc", "good"), RPCS, ids=["unary", "stream"])


@rpcs
@pytest.mark.parametrize("status", ["408 x", "409 x", "429 x", "500 x", "503 x", "529 x"])
async def test_a_temporary_error_is_hidden(script: Script, rpc: str, good: bytes, status: str) -> None:
    script.respond_with(http(b"{}", status), http(b"{}", status), good)
    async with service(script.base_url) as chat:
        call = getattr(chat.stub, rpc)(request())
        await (collect(call) if rpc.endswith("Stream") else call)
        assert chat.value("chatrpc_upstream_retries_total", code=status[:3]) == 2
    assert len({exchange.body for exchange in script.exchanges}) == 1
    assert len(script.exchanges) == 3


@rpcs
@pytest.mark.parametrize(
    ("response", "attempts"),
    [
        (http(b"{}", "400 x"), 1),
        (http(b"{}", "404 x"), 1),
        (http(b'{"error": {"code": "insufficient_quota"}}', "429 x"), 1),
        (http(b"{}", "500 x", x_should_retry="false"), 1),
        (http(b"{}", "400 x", x_should_retry="true"), 3),
        (http(b"{}", "503 x"), 3),
        (http(b"{}", "503 x", retry_after="3600"), 1),
        (http(b"{}", "429 x", retry_after_ms="10"), 3),
    ],
    ids=["400", "404", "quota", "should-not-retry", "should-retry", "gives-up", "past-the-deadline", "retry-after-ms"],
)
async def test_attempts(script: Script, rpc: str, good: bytes, response: bytes, attempts: int) -> None:
    script.respond_with(response)
    async with service(script.base_url) as chat:
        failed = await failure(getattr(chat.stub, rpc)(request(), timeout=30))
    assert len(script.exchanges) == attempts
    assert failed.code is not grpc.StatusCode.DEADLINE_EXCEEDED, "the retry would be after the deadline"


LONG_WAITS = {
    "seconds": ({"retry_after": "31"}, 31.0),
    "milliseconds": ({"retry_after_ms": "30001"}, 30.001),
    "date": ({"retry_after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 1e9),
    "beyond every number": ({"retry_after": "9" * 400}, 1e9),
}


@rpcs
@pytest.mark.parametrize(("headers", "seconds"), LONG_WAITS.values(), ids=LONG_WAITS)
async def test_a_pause_beyond_its_limit_ends_the_call_and_reaches_the_caller(
    script: Script, rpc: str, good: bytes, headers: dict[str, str], seconds: float
) -> None:
    """Although the deadline, 600 s by default, is later."""
    script.respond_with(http(b"{}", "429 x", **headers), good)
    async with service(script.base_url) as chat, asyncio.timeout(30):
        failed = await failure(getattr(chat.stub, rpc)(request()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPSTREAM_RATE_LIMITED")
    assert failed.details["RetryInfo"].retry_delay.ToNanoseconds() == seconds * 1e9
    assert len(script.exchanges) == 1


async def test_a_connection_that_breaks_before_the_response(echo: Echo) -> None:
    """As an idle connection does if the upstream has just closed it."""
    async with service(echo.base_url) as chat:
        response = await chat.stub.CreateChatCompletion(request(model="echo:reset=0,times=1"))
    assert response.choices[0].message.content
    assert len(echo.requests) == 2


engines = pytest.mark.parametrize("engine", ["builtin", "httpx"])


@engines
@rpcs
async def test_a_dead_connection_needs_no_retry(script: Script, rpc: str, good: bytes, engine: str) -> None:
    async def reset(exchange: Exchange) -> None:
        exchange.reset()

    script.respond_with(good, reset, good)
    async with service(script.base_url, upstream={"max_retries": 0, "http_client": engine}) as chat:
        for _ in range(2):
            call = getattr(chat.stub, rpc)(request())
            await (collect(call) if rpc.endswith("Stream") else call)
            await rested(chat)
    assert len(script.exchanges) == 3


@engines
@rpcs
@pytest.mark.parametrize("response", INVALID_HTTP.values(), ids=INVALID_HTTP)
async def test_an_invalid_response_is_not_retried(
    script: Script, rpc: str, good: bytes, response: bytes, engine: str
) -> None:
    """It has been paid for."""
    script.respond_with(response, good)
    async with service(script.base_url, upstream={"http_client": engine}) as chat:
        failed = await failure(getattr(chat.stub, rpc)(request()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "UPSTREAM_INVALID_RESPONSE")
    assert "violates HTTP/1.1" in failed.message
    assert len(script.exchanges) == 1


@engines
@rpcs
@pytest.mark.parametrize("bytes_before", [0, 20], ids=["headers", "a part of the body"])
async def test_a_response_that_breaks_before_anything_is_delivered(
    script: Script, rpc: str, good: bytes, bytes_before: int, engine: str
) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.send(good[: good.index(b"\r\n\r\n") + 4 + bytes_before])
        exchange.writer.close()

    script.respond_with(cut, http(b""), cut, good)
    async with service(script.base_url, upstream={"http_client": engine, "max_retries": 3}) as chat:
        call = getattr(chat.stub, rpc)(request())
        await (collect(call) if rpc.endswith("Stream") else call)
    assert len(script.exchanges) == 4


async def test_no_retry_after_the_first_chunk(chat: Service, echo: Echo) -> None:
    failed = await failure(chat.stub.CreateChatCompletionStream(request("a b c", "echo:reset=2,pace=0.01,times=1")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_TRUNCATED")
    assert failed.messages
    assert len(echo.requests) == 1


async def test_no_chunk_is_delivered_twice(script: Script) -> None:
    """Neither after retries before the first chunk, nor by a further attempt."""

    async def reset(exchange: Exchange) -> None:
        exchange.reset()

    async def broken(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", chunk("1 ") + chunk("2 "))
        await asyncio.sleep(0.05)  # a separate read
        exchange.reset()

    script.respond_with(http(b"{}", "503 x"), reset, broken, STREAM)
    async with service(script.base_url) as chat:
        ended = await outcome(chat.stub.CreateChatCompletionStream(request(), metadata=[("x-chatrpc-coalesce", "off")]))
        assert chat.value("chatrpc_upstream_retries_total") == 2
    assert [message.choices[0].delta.content for message in ended.messages] == ["1 ", "2 "]
    assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_TRUNCATED")
    assert len(script.exchanges) == 3
