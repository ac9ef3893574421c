"""One deadline limits the whole call, and a cancel reaches the upstream in every phase."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc
import pytest

from chatrpc.v1.chat_request_pb2 import StreamOptions
from chatrpc_echo import Echo
from support import Exchange, Responder, Script, Service, failure, request, service

Code = grpc.StatusCode

PHASES = [
    ("unary", "CreateChatCompletion", "echo:delay=60"),
    ("stream-before-headers", "CreateChatCompletionStream", "echo:delay=60"),
    ("stream-before-first-chunk", "CreateChatCompletionStream", "echo:first=60"),
    ("stream-between-chunks", "CreateChatCompletionStream", "echo:gap=60"),
]
phases = pytest.mark.parametrize(("rpc", "model"), [p[1:] for p in PHASES], ids=[p[0] for p in PHASES])


@pytest.fixture(params=["builtin", "httpx"])
async def patient(echo: Echo, request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """A service without retries, so that each call is one request; with each HTTP client."""
    async with service(echo.base_url, upstream={"max_retries": 0, "http_client": request.param}) as running:
        yield running


async def _ended(chat: Service) -> None:
    """Wait until no call is in flight."""
    async with asyncio.timeout(5):
        while chat.value("chatrpc_rpcs_in_flight"):
            await asyncio.sleep(0.005)


@phases
async def test_cancel_reaches_the_upstream(patient: Service, echo: Echo, rpc: str, model: str) -> None:
    call = getattr(patient.stub, rpc)(request("a b c d", model))
    if "gap" in model:
        await call.read()
    else:
        waiting = asyncio.ensure_future(call.read() if rpc.endswith("Stream") else call)
    async with asyncio.timeout(5):
        received = await echo.arrived()
        call.cancel()
        await received.disconnected.wait()
    if "gap" not in model:
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await _ended(patient)
    assert patient.value("grpc_server_handled_total", grpc_code="Canceled") == 1


@phases
async def test_deadline_reaches_the_upstream(patient: Service, echo: Echo, rpc: str, model: str) -> None:
    failed = await failure(getattr(patient.stub, rpc)(request("a b c d", model), timeout=0.3))
    assert failed.code is Code.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await (await echo.arrived()).disconnected.wait()
    await _ended(patient)
    assert patient.value("grpc_server_handled_total", grpc_code="DeadlineExceeded") == 1


async def test_metrics_count_a_deadline_not_a_cancel(echo: Echo) -> None:
    """grpc rounds longer deadlines up, so the caller cancels before the service's clock expires."""
    async with service(echo.base_url) as chat:
        for milliseconds in (1003, 1237, 2341):
            await failure(chat.stub.CreateChatCompletion(request(model="echo:delay=60"), timeout=milliseconds / 1000))
        await _ended(chat)
        assert chat.value("grpc_server_handled_total", grpc_code="DeadlineExceeded") == 3


@phases
async def test_calls_without_a_deadline_get_the_default(echo: Echo, rpc: str, model: str) -> None:
    async with service(echo.base_url, limits={"default_deadline_seconds": 0.3}) as chat:
        failed = await failure(getattr(chat.stub, rpc)(request("a b c d", model)))
        assert (failed.code, failed.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        async with asyncio.timeout(5):
            await (await echo.arrived()).disconnected.wait()


async def test_with_too_little_time_nothing_is_sent_upstream(echo: Echo) -> None:
    async with service(echo.base_url, limits={"min_deadline_seconds": 5}) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request(), timeout=4))
        assert (failed.code, failed.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        assert chat.value("chatrpc_admission_rejected_total", reason="deadline") == 1
        assert not echo.requests


@pytest.mark.parametrize(
    ("model", "setting", "chunks"),
    [
        ("echo:delay=60", "first_chunk_timeout_seconds", 0),
        ("echo:first=60", "first_chunk_timeout_seconds", 0),
        ("echo:gap=60,pace=0.01", "chunk_gap_timeout_seconds", 3),
    ],
    ids=["headers", "first-chunk", "gap"],
)
async def test_a_silent_upstream_times_out(echo: Echo, model: str, setting: str, chunks: int) -> None:
    async with service(echo.base_url, upstream={setting: 0.3, "max_retries": 0}) as chat:
        failed = await failure(chat.stub.CreateChatCompletionStream(request("a b c d", model)))
    assert (failed.code, failed.reason) == (Code.DEADLINE_EXCEEDED, "UPSTREAM_TIMEOUT")
    assert failed.message == "the upstream sent no chunk for 0.3 s"
    assert len(failed.messages) == chunks
    await echo.requests[0].disconnected.wait()


def _endless(sent: list[int]) -> Responder:
    """Stream until the writes block, then wait until the other side closes."""

    async def respond(exchange: Exchange) -> None:
        piece = b'data: {"choices": [{"index": 0, "delta": {"content": "%s"}}]}\n\n' % (b"x" * 100_000)
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                await exchange.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        sent.append(1)

    return respond


@pytest.mark.parametrize("engine", ["builtin", "httpx"])
async def test_cancel_while_the_caller_does_not_read(script: Script, engine: str) -> None:
    """The blocked message is dropped and the upstream's connection is closed."""
    closed: list[int] = []
    script.respond_with(_endless(closed))
    async with service(script.base_url, upstream={"http_client": engine}) as chat, asyncio.timeout(10):
        call = chat.stub.CreateChatCompletionStream(request())
        await call.read()
        await asyncio.sleep(0.3)  # until the buffers on the way are full
        call.cancel()
        while not closed:
            await asyncio.sleep(0.01)
        await _ended(chat)
        assert chat.value("grpc_server_handled_total", grpc_code="Canceled") == 1


async def test_a_caller_that_does_not_read_does_not_outlive_its_deadline(script: Script) -> None:
    closed: list[int] = []
    script.respond_with(_endless(closed))
    async with service(script.base_url, limits={"default_deadline_seconds": 0.5}) as chat, asyncio.timeout(10):
        call = chat.stub.CreateChatCompletionStream(request())
        await call.read()
        while not closed:
            await asyncio.sleep(0.01)
        await _ended(chat)
        assert chat.value("grpc_server_handled_total", grpc_code="DeadlineExceeded") == 1
        call.cancel()


async def test_usage_without_a_message_is_counted_too(script: Script) -> None:
    """The caller declines usage, and disconnects while the upstream keeps the stream open."""
    seen = asyncio.Event()

    async def respond(exchange: Exchange) -> None:
        events = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}\n\n'
        events += b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 8}}\n\n'
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", events)
        seen.set()
        await exchange.closed_by_peer()

    script.respond_with(respond)
    async with service(script.base_url) as chat, asyncio.timeout(10):
        call = chat.stub.CreateChatCompletionStream(request(stream_options=StreamOptions(include_usage=False)))
        await call.read()
        await seen.wait()
        await asyncio.sleep(0.1)
        call.cancel()
        await _ended(chat)
        assert chat.value("chatrpc_tokens_total", gen_ai_token_type="output") == 8


async def test_tokens_of_a_cancelled_stream_are_counted(patient: Service, echo: Echo) -> None:
    """The upstream sends its usage, and then the caller cancels."""
    call = patient.stub.CreateChatCompletionStream(request(model="echo:no_done"))
    while not (await call.read()).HasField("usage"):
        pass
    call.cancel()
    await _ended(patient)
    assert patient.value("chatrpc_tokens_total", gen_ai_token_type="output") > 0
