"""The metrics beyond the count: tokens, times, attempts and their outcomes."""

import asyncio
from typing import Any
from urllib.request import Request, urlopen

import pytest

from chatrpc_echo import Echo
from chatrpc_server.core.call import Call, UpstreamIdentity
from chatrpc_server.rpc.layers.metrics import RPCS
from chatrpc_server.telemetry.metrics import Metrics
from chatrpc_server.upstream.metrics import AttemptMetrics
from support import Exchange, Responder, Script, Service, collect, failure, http, request, service, sse

MODEL = {"gen_ai_request_model": "echo"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def chunk(text: str = "a", **fields: str) -> bytes:
    more = "".join(f', "{name}": {value}' for name, value in fields.items())
    return b'{"choices": [{"index": 0, "delta": {"content": "%b"}}]%b}' % (text.encode(), more.encode())


def event(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"


RESPONSE = http(b'{"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}]}')
USAGE = (
    '{"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4},'
    ' "completion_tokens_details": {"reasoning_tokens": 3}}'
)
TOKENS = {"input": 7, "output": 5, "cached_input": 4, "reasoning": 3}


def _tokens(chat: Service, name: str) -> dict[str, float]:
    return {kind: chat.value(name, **MODEL, gen_ai_token_type=kind) for kind in TOKENS}


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_tokens_of_each_kind(script: Script, stream: bool) -> None:
    unary = b'{"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}], "usage": %b}'
    script.respond_with(sse(chunk(usage=USAGE)) if stream else http(unary % USAGE.encode()))
    async with service(script.base_url) as chat:
        if stream:
            await collect(chat.stub.CreateChatCompletionStream(request()))
        else:
            await chat.stub.CreateChatCompletion(request())
        assert _tokens(chat, "chatrpc_tokens_total") == TOKENS
        assert _tokens(chat, "gen_ai_client_token_usage_sum") == TOKENS
        assert not chat.value("chatrpc_abandoned_tokens_total")
        assert not chat.value("chatrpc_usage_missing_total")


@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_tokens_of_failed_calls(script: Script, end: str) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.send(HEAD, event(chunk(usage=USAGE)), event(chunk(usage=USAGE)))
        await exchange.closed_by_peer()

    script.respond_with(respond)
    async with service(script.base_url) as chat:
        call = chat.stub.CreateChatCompletionStream(request(), timeout=0.5 if end == "deadline" else 60)
        texts = ""
        while len(texts) < 2:
            texts += "".join(choice.delta.content for choice in (await call.read()).choices)
        if end == "cancel":
            call.cancel()
        await call.code()
        await chat.wait_for(0, "chatrpc_rpcs_in_flight")
        assert _tokens(chat, "chatrpc_abandoned_tokens_total") == TOKENS == _tokens(chat, "chatrpc_tokens_total")
        assert chat.value("chatrpc_abandoned_chunks_total", **MODEL) == 2


async def test_a_failed_upstream_is_not_a_disconnected_caller(script: Script) -> None:
    script.respond_with(sse(chunk(usage=USAGE), done=False))
    async with service(script.base_url) as chat:
        await failure(chat.stub.CreateChatCompletionStream(request()))
        assert _tokens(chat, "chatrpc_tokens_total") == TOKENS, "the tokens were spent anyway"
        assert not chat.value("chatrpc_abandoned_tokens_total")
        assert not chat.value("chatrpc_abandoned_chunks_total")


async def test_each_attempt_is_a_request(script: Script) -> None:
    busy = http(b"{}", "429 Too Many Requests", retry_after="0")
    script.respond_with(busy, http(b"{}", "599 Odd"), RESPONSE)
    async with service(script.base_url) as chat:
        await chat.stub.CreateChatCompletion(request())
        for labels in (
            {"code": "429", "attempt": "first"},
            {"code": "other", "attempt": "retry"},
            {"code": "200", "attempt": "retry"},
        ):
            assert chat.value("chatrpc_upstream_requests_total", **labels) == 1
        assert chat.value("chatrpc_upstream_requests_total") == 3
        assert chat.value("chatrpc_upstream_retries_total", code="429", outcome="response") == 1
        assert chat.value("chatrpc_upstream_retries_total", code="other") == 1
        assert chat.value("chatrpc_upstream_request_seconds_count", phase="headers") == 3
        assert chat.value("chatrpc_upstream_request_seconds_count", phase="body") == 3


async def test_a_cancel_of_the_caller_is_not_a_fault_of_the_upstream(script: Script) -> None:
    async def silence(exchange: Exchange) -> None:
        await exchange.closed_by_peer()

    script.respond_with(silence)
    async with service(script.base_url) as chat:
        await failure(chat.stub.CreateChatCompletion(request(), timeout=0.2))
        await chat.wait_for(1, "chatrpc_upstream_requests_total", code="", outcome="cancelled")
        assert chat.value("chatrpc_upstream_requests_total") == 1


async def test_an_unreachable_upstream() -> None:
    async with service("http://127.0.0.1:9/v1") as chat:
        await failure(chat.stub.CreateChatCompletion(request()))
        assert chat.value("chatrpc_upstream_requests_total", code="", outcome="no_response") == 3
        assert chat.value("chatrpc_upstream_retries_total", code="", outcome="no_response") == 2
        assert not chat.value("chatrpc_upstream_request_seconds_count")


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (sse(b"no JSON"), "bad_json"),
        (sse(b'["an error"]'), "not_a_completion"),
        (sse(b'"%b"' % (b"x" * (1 << 20))), "oversize"),
        (http(b"<html>", content_type="text/html"), "unexpected_content"),
        (sse(chunk(), done=False), "missing_done"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_kinds_of_protocol_errors(script: Script, response: bytes, kind: str) -> None:
    script.respond_with(response)
    async with service(script.base_url, upstream={"max_retries": 0, "max_event_bytes": 1 << 20}) as chat:
        await failure(chat.stub.CreateChatCompletionStream(request()))
        assert chat.value("chatrpc_upstream_protocol_errors_total", kind=kind) == 1
        assert chat.value("chatrpc_upstream_protocol_errors_total") == 1


async def test_remaining_rate_limits(script: Script) -> None:
    headers = {"x_ratelimit_remaining_requests": "41", "x_ratelimit_remaining_tokens": "many"}
    script.respond_with(http(RESPONSE.partition(b"\r\n\r\n")[2], **headers))
    async with service(script.base_url) as chat:
        await chat.stub.CreateChatCompletion(request())
        assert chat.value("chatrpc_upstream_ratelimit_remaining", kind="requests") == 41
        assert not chat.value("chatrpc_upstream_ratelimit_remaining", kind="tokens")


async def test_times_of_a_stream(script: Script) -> None:
    """The wait for the upstream is not overhead; it shows between the deliveries."""

    async def respond(exchange: Exchange) -> None:
        await asyncio.sleep(0.3)
        await exchange.send(HEAD, event(chunk()))
        await asyncio.sleep(0.3)
        finish = b'{"choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": "odd"}]}'
        await exchange.send(event(chunk()) + event(finish) + event(b"[DONE]"))
        exchange.writer.close()

    script.respond_with(respond)
    async with service(script.base_url) as chat:
        messages = await collect(chat.stub.CreateChatCompletionStream(request(), timeout=30))
        await chat.wait_for(0, "chatrpc_rpcs_in_flight")
        total = chat.value("grpc_server_handling_seconds_sum")
        assert total >= 0.6
        # On a slow machine the service works on one chunk while the upstream waits before the next.
        assert chat.value("chatrpc_overhead_seconds_sum", grpc_method="CreateChatCompletionStream") < total / 2
        assert chat.value("gen_ai_client_operation_time_to_first_chunk_seconds_sum", **MODEL) >= 0.3
        assert chat.value("gen_ai_client_operation_time_per_output_chunk_seconds_count", **MODEL) == 1
        assert chat.value("gen_ai_client_operation_time_per_output_chunk_seconds_sum", **MODEL) >= 0.25
        assert chat.value("chatrpc_backpressure_wait_seconds_count") == 1
        assert chat.value("chatrpc_stream_chunks_total", **MODEL) == 3
        assert chat.value("chatrpc_stream_bytes_total", **MODEL) == sum(message.ByteSize() for message in messages)
        assert chat.value("chatrpc_finish_reasons_total", **MODEL, finish_reason="other") == 1
        assert chat.value("chatrpc_deadline_remaining_at_start_seconds_count") == 1
        assert not chat.value("chatrpc_deadline_missing_total")


@pytest.mark.parametrize(("seconds", "below"), [(1, 0.5), (10, 5), (30, 10), (300, 120)])
async def test_a_round_timeout_is_in_its_own_bucket(chat: Service, seconds: int, below: float) -> None:
    """grpc rounds it up by at most 1 %, more often on an open connection."""
    for _ in range(10):
        await chat.stub.CreateChatCompletion(request(), timeout=seconds)
    timeouts = "chatrpc_deadline_remaining_at_start_seconds"
    assert chat.value(f"{timeouts}_bucket", le=f"{seconds:.1f}") == chat.value(f"{timeouts}_count") == 10
    assert not chat.value(f"{timeouts}_bucket", le=f"{below:.1f}")


def test_each_gap_is_observed_once() -> None:
    metrics = Metrics(RPCS, ["default"])
    call = Call(id="1", method="CreateChatCompletionStream", started=0, deadline=0)
    attempt = call.begin_attempt(UpstreamIdentity("default", "openai"), 0)

    def observed() -> float | None:
        labels = dict(zip(metrics.chunk_gap._labelnames, metrics.gen_ai_labels("openai", call.model), strict=True))
        return metrics.registry.get_sample_value("gen_ai_client_operation_time_per_output_chunk_seconds_count", labels)

    with AttemptMetrics(metrics).gaps(call, attempt) as note:
        for _ in range(40):
            note(0.01)
        assert observed() == 32
    assert observed() == 40


async def test_calls_without_a_deadline_are_counted(chat: Service) -> None:
    await chat.stub.CreateChatCompletion(request())
    assert chat.value("chatrpc_deadline_missing_total", grpc_method="CreateChatCompletion") == 1
    assert not chat.value("chatrpc_deadline_remaining_at_start_seconds_count")


@pytest.mark.parametrize("engine", ["builtin", "httpx"])
async def test_gauges(echo: Echo, engine: str) -> None:
    async with service(echo.base_url, upstream={"http_client": engine}) as chat:
        stream = chat.stub.CreateChatCompletionStream(request(model="echo:pieces=9,gap=60"))
        await stream.read()
        await chat.stub.CreateChatCompletion(request())
        await chat.wait_for(1, "chatrpc_upstream_pool_connections", state="active")
        await chat.wait_for(1, "chatrpc_upstream_pool_connections", state="idle")
        assert chat.value("chatrpc_asyncio_tasks") > 1
        assert chat.value("chatrpc_event_loop_lag_seconds_count") > 0
        assert chat.value("chatrpc_rpcs_in_flight_limit") == 1000
        stream.cancel()


@pytest.mark.parametrize(
    ("traceparent", "shown"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", True),
        (f"00-{TRACE}-b7ad6b7169203331-00", False),
        (f"01-{TRACE}-b7ad6b7169203331-03-more", True),
        (f"ff-{TRACE}-b7ad6b7169203331-01", False),
        (f"00-{TRACE}-0000000000000000-01", False),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", False),
        ("nonsense", False),
    ],
    ids=["sampled", "not-sampled", "future", "no-version", "no-parent", "no-trace", "nonsense"],
)
async def test_exemplars(chat: Service, traceparent: str, shown: bool) -> None:
    await collect(chat.stub.CreateChatCompletionStream(request(), metadata=[("traceparent", traceparent)]))
    asked = Request(f"http://{chat.server.metrics_address}/metrics", headers={"accept": "application/openmetrics-text"})

    def scrape() -> str:
        with urlopen(asked, timeout=5) as response:
            text: str = response.read().decode()
        return text

    lines = (await asyncio.to_thread(scrape)).splitlines()
    exemplars = {line.partition("{")[0]: line for line in lines if f'# {{trace_id="{TRACE}"}}' in line}
    names: set[Any] = {
        "grpc_server_handling_seconds_bucket",
        "gen_ai_client_operation_duration_seconds_bucket",
        "gen_ai_client_operation_time_to_first_chunk_seconds_bucket",
        "chatrpc_overhead_seconds_bucket",
    }
    assert set(exemplars) == (names if shown else set())


OUTCOMES = {
    # the upstream's response, the outcome of the stream
    "408": (http(b"{}", "408 x"), "upstream_error"),
    "504": (http(b"{}", "504 x"), "upstream_error"),
    "503": (http(b"{}", "503 x"), "upstream_error"),
    "400": (http(b"{}", "400 x"), "upstream_error"),
    "an error like a timeout in a 200": (sse(b'{"error": {"message": "m", "code": "504"}}'), "upstream_error"),
    "truncated": (sse(b'{"choices": [{"index": 0, "delta": {"content": "a"}}]}', done=False), "upstream_truncated"),
    "silent before the head": (Exchange.closed_by_peer, "idle_timeout"),
}


@pytest.mark.parametrize(("response", "outcome"), OUTCOMES.values(), ids=OUTCOMES)
async def test_the_outcome_of_a_stream_that_the_upstream_fails(
    script: Script, response: bytes | Responder, outcome: str
) -> None:
    script.respond_with(response)
    upstream = {"max_retries": 0, "first_chunk_timeout_seconds": 0.2 if outcome == "idle_timeout" else 30}
    async with service(script.base_url, upstream=upstream) as chat:
        await failure(chat.stub.CreateChatCompletionStream(request()))
        await chat.wait_for(1, "chatrpc_streams_ended_total")
        assert chat.value("chatrpc_streams_ended_total", outcome=outcome) == 1
        assert chat.value("chatrpc_abandoned_chunks_total") == 0


async def test_an_invalid_request_is_rejected(chat: Service) -> None:
    failed = await failure(chat.stub.CreateChatCompletionStream(request(extra_json="{")))
    assert failed.reason == "INVALID_REQUEST"
    await chat.wait_for(1, "chatrpc_streams_ended_total")
    assert chat.value("chatrpc_streams_ended_total", outcome="rejected") == 1
