"""One deadline rules everything, and a cancel reaches the upstream, in every phase of a call."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from chatrpc_server.echo import Echo
from support import Service, failure, request, service

Code = grpc.StatusCode

PHASES = [
    ("unary", "CreateChatCompletion", "echo:delay=60"),
    ("stream-before-headers", "CreateChatCompletionStream", "echo:delay=60"),
    ("stream-before-first-chunk", "CreateChatCompletionStream", "echo:first=60"),
    ("stream-between-chunks", "CreateChatCompletionStream", "echo:gap=60"),
]
phases = pytest.mark.parametrize(("rpc", "model"), [p[1:] for p in PHASES], ids=[p[0] for p in PHASES])


@pytest.fixture
async def patient(echo: Echo) -> AsyncIterator[Service]:
    """A service that does not retry, so that each call is one request."""
    async with service(echo.base_url, upstream={"max_retries": 0}) as running:
        yield running


async def _ended(chat: Service) -> None:
    """Waits until no call is in flight any more."""
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


@phases
async def test_calls_without_a_deadline_get_one(echo: Echo, rpc: str, model: str) -> None:
    async with service(echo.base_url, limits={"default_deadline_seconds": 0.3}) as chat:
        failed = await failure(getattr(chat.stub, rpc)(request("a b c d", model)))
        assert (failed.code, failed.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        async with asyncio.timeout(5):
            await (await echo.arrived()).disconnected.wait()


async def test_too_little_time_sends_nothing_upstream(echo: Echo) -> None:
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
async def test_a_silent_upstream_is_given_up(echo: Echo, model: str, setting: str, chunks: int) -> None:
    async with service(echo.base_url, upstream={setting: 0.3, "max_retries": 0}) as chat:
        failed = await failure(chat.stub.CreateChatCompletionStream(request("a b c d", model)))
    assert (failed.code, failed.reason) == (Code.DEADLINE_EXCEEDED, "UPSTREAM_TIMEOUT")
    assert failed.message == "the upstream sent no chunk for 0.3 s"
    assert len(failed.chunks) == chunks
    await echo.requests[0].disconnected.wait()


async def test_tokens_of_a_cancelled_stream_are_counted(patient: Service, echo: Echo) -> None:
    """The upstream told its usage, and then the caller went."""
    call = patient.stub.CreateChatCompletionStream(request(model="echo:no_done"))
    while not (await call.read()).HasField("usage"):
        pass
    call.cancel()
    await _ended(patient)
    assert patient.value("chatrpc_tokens_total", gen_ai_token_type="output") > 0
