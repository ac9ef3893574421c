"""Traces: which spans a call leaves, what they say, and what they never say."""

import asyncio
import logging
import re
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.openmetrics.exposition import generate_latest

from chatrpc_echo import Echo
from chatrpc_server.core.errors import Reason
from chatrpc_server.process.lifecycle import StartError
from chatrpc_server.server import Server
from chatrpc_server.telemetry import span_exporter
from support import Script, Service, collect, failure, http, outcome, request, service, settings, sse
from support.faults import FAULTS, base_url_of

ON = {"tracing": {"endpoint": "http://collector.invalid:4318"}}
UNARY, STREAM = "CreateChatCompletion", "CreateChatCompletionStream"
rpcs = pytest.mark.parametrize("rpc", [UNARY, STREAM])
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (f"00-{TRACE_ID}-{PARENT_ID}-0{flag}" for flag in (1, 0))
KEY, PROMPT = "sk-canary-0123456789abcdef", "canary-of-the-prompt"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """In the place of the one that sends."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(span_exporter, "OTLPSpanExporter", lambda _: exporter)
    return exporter


Spans = Callable[[Service], Any]


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    """The spans of the only call there was: its own, and those of its attempts."""

    async def of(chat: Service) -> tuple[ReadableSpan, list[ReadableSpan]]:
        assert chat.server.tracing
        async with asyncio.timeout(5):
            while True:
                chat.server.tracing.provider.force_flush()
                found = exporter.get_finished_spans()
                if calls := [span for span in found if span.kind is SpanKind.SERVER]:
                    break
                await asyncio.sleep(0.001)  # the caller may hear of the end a moment before
        (call,) = calls
        attempts = [span for span in found if span is not call]
        for attempt in attempts:
            assert attempt.kind is SpanKind.CLIENT
            assert (attempt.context.trace_id, attempt.parent) == (call.context.trace_id, call.context)
        return call, attempts

    return of


def told(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def traceparent(span: ReadableSpan) -> str:
    place = span.context
    return f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"


async def test_unary(echo: Echo, spans: Spans) -> None:
    async with service(echo.base_url, **ON) as chat:
        usage = (await chat.stub.CreateChatCompletion(request())).usage
        call, (attempt,) = await spans(chat)
    port = int(echo.base_url.rsplit(":")[-1].removesuffix("/v1"))
    upstream = {"server.address": "127.0.0.1", "server.port": port}
    assert (call.name, call.status.status_code, call.events) == ("chat echo", StatusCode.UNSET, ())
    assert told(call) == upstream | {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "echo",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "rpc.system": "grpc",
        "rpc.service": "chatrpc.v1.ChatCompletionService",
        "rpc.method": UNARY,
        "rpc.grpc.status_code": 0,
    }
    assert (attempt.name, attempt.status.status_code) == ("POST", StatusCode.UNSET)
    assert told(attempt) == upstream | {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.full": f"{echo.base_url}/chat/completions",
    }
    assert call.resource.attributes["service.name"] == "chatrpc-server"


async def test_stream(echo: Echo, spans: Spans) -> None:
    async with service(echo.base_url, **ON) as chat:
        await collect(chat.stub.CreateChatCompletionStream(request(model="echo:delay=0.05")))
        call, (attempt,) = await spans(chat)
    (first,) = call.events
    assert first.name == "first_chunk"
    seconds = told(call)["gen_ai.response.time_to_first_chunk"]
    assert seconds >= 0.05
    # The span begins a moment after the call, by another clock.
    assert abs((first.timestamp - call.start_time) / 1e9 - seconds) < 0.04
    assert call.start_time < attempt.start_time < first.timestamp < attempt.end_time < call.end_time
    assert told(call)["gen_ai.request.stream"] is True
    assert (call.name, told(call)["gen_ai.request.model"]) == ("chat other", "echo:delay=0.05")


async def test_tokens_of_every_kind(script: Script, spans: Spans) -> None:
    usage = b'{"prompt_tokens": 9, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 7},'
    usage += b' "completion_tokens_details": {"reasoning_tokens": 6}}'
    choices = b'[{"index": 1, "finish_reason": "length"}, {"index": 0, "finish_reason": "stop"}]'
    script.answers(http(b'{"choices": %b, "usage": %b}' % (choices, usage)))
    async with service(script.base_url, **ON) as chat:
        await chat.stub.CreateChatCompletion(request())
        call, _ = await spans(chat)
    assert {name.removeprefix("gen_ai.usage."): n for name, n in told(call).items() if ".usage." in name} == {
        "input_tokens": 9,
        "output_tokens": 8,
        "cache_read.input_tokens": 7,
        "reasoning.output_tokens": 6,
    }
    assert told(call)["gen_ai.response.finish_reasons"] == ("stop", "length")


@rpcs
async def test_retries_are_seen(echo: Echo, spans: Spans, rpc: str) -> None:
    async with service(echo.base_url, **ON) as chat:
        await outcome(getattr(chat.stub, rpc)(request(model="echo:status=503,times=2")))
        call, attempts = await spans(chat)
    assert call.status.status_code is StatusCode.UNSET, "all is well in the end"
    statuses = [
        (told(a)["http.response.status_code"], a.status.status_code, told(a).get("error.type")) for a in attempts
    ]
    assert statuses == [(503, StatusCode.ERROR, "UPSTREAM_UNAVAILABLE")] * 2 + [(200, StatusCode.UNSET, None)]
    assert [told(attempt).get("http.request.resend_count") for attempt in attempts] == [None, 1, 2]
    sent = [received.headers["traceparent"] for received in echo.requests]
    assert sent == [traceparent(attempt) for attempt in attempts]


@rpcs
@pytest.mark.parametrize(
    ("model", "limits", "code", "error_type", "is_error", "attempt"),
    [
        ("echo:status=400", {}, 3, "UPSTREAM_INVALID_REQUEST", False, (400, "UPSTREAM_INVALID_REQUEST")),
        ("echo:status=401", {}, 13, "UPSTREAM_UNAUTHENTICATED", True, (401, "UPSTREAM_UNAUTHENTICATED")),
        ("echo:status=429", {}, 8, "UPSTREAM_RATE_LIMITED", False, (429, "UPSTREAM_RATE_LIMITED")),
        ("echo:status=503", {}, 14, "UPSTREAM_UNAVAILABLE", True, (503, "UPSTREAM_UNAVAILABLE")),
        ("echo:delay=60", {"default_deadline_seconds": 0.2}, 4, "DEADLINE_EXCEEDED", True, (None, "CANCELLED")),
        ("echo", {"min_deadline_seconds": 30, "default_deadline_seconds": 30}, 4, "DEADLINE_EXCEEDED", True, None),
    ],
    ids=["400", "401", "429", "503", "deadline", "rejected"],
)
async def test_failures(
    echo: Echo,
    spans: Spans,
    rpc: str,
    model: str,
    limits: dict[str, float],
    code: int,
    error_type: str,
    is_error: bool,
    attempt: tuple[int | None, str] | None,
) -> None:
    async with service(echo.base_url, upstream={"max_retries": 0}, limits=limits, **ON) as chat:
        timeout = 1 if "min_deadline_seconds" in limits else None
        await failure(getattr(chat.stub, rpc)(request(model=model), timeout=timeout))
        call, attempts = await spans(chat)
    assert (told(call)["rpc.grpc.status_code"], told(call)["error.type"]) == (code, error_type)
    assert call.status.status_code is (StatusCode.ERROR if is_error else StatusCode.UNSET)
    assert call.status.description is None
    seen = [(told(a).get("http.response.status_code"), told(a)["error.type"]) for a in attempts]
    assert seen == ([attempt] if attempt else [])
    assert all(a.status.is_unset == (told(a)["error.type"] == "CANCELLED") for a in attempts)


@pytest.mark.parametrize(
    ("rpc", "model"), [(UNARY, "echo:delay=60"), (STREAM, "echo:delay=60"), (STREAM, "echo:gap=60")]
)
async def test_cancel(echo: Echo, spans: Spans, rpc: str, model: str) -> None:
    async with service(echo.base_url, **ON) as chat:
        call = getattr(chat.stub, rpc)(request("a b c d", model))
        if "gap" in model:
            await call.read()
        else:
            waiting = asyncio.ensure_future(call.read() if rpc == STREAM else call)
        await echo.arrived()
        call.cancel()
        if "gap" not in model:
            with pytest.raises(asyncio.CancelledError):
                await waiting
        span, (attempt,) = await spans(chat)
    assert (told(span)["rpc.grpc.status_code"], told(span)["error.type"]) == (1, "CANCELLED")
    assert told(attempt)["error.type"] == "CANCELLED"
    assert span.status.status_code is attempt.status.status_code is StatusCode.UNSET


@rpcs
async def test_a_callers_trace_goes_on(echo: Echo, spans: Spans, rpc: str) -> None:
    async with service(echo.base_url, tracing={**ON["tracing"], "sample_ratio": 0}) as chat:
        metadata = [("traceparent", SAMPLED), ("tracestate", "vendor=Opaque,other=1")]
        await outcome(getattr(chat.stub, rpc)(request(), metadata=metadata))
        call, (attempt,) = await spans(chat)
    assert call.parent is not None
    assert (f"{call.parent.trace_id:032x}", f"{call.parent.span_id:016x}") == (TRACE_ID, PARENT_ID)
    headers = echo.requests[0].headers
    assert headers["traceparent"] == traceparent(attempt)
    assert headers["tracestate"] == "vendor=Opaque,other=1"


@rpcs
async def test_a_callers_no_is_respected(
    echo: Echo, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture, rpc: str
) -> None:
    caplog.set_level(logging.INFO, "chatrpc.access")
    async with service(echo.base_url, **ON) as chat:
        await outcome(getattr(chat.stub, rpc)(request(), metadata=[("traceparent", UNSAMPLED), ("tracestate", "a=b")]))
    assert not exporter.get_finished_spans()
    headers = echo.requests[0].headers
    assert re.fullmatch(f"00-{TRACE_ID}-[0-9a-f]{{16}}-00", headers["traceparent"])
    assert headers["tracestate"] == "a=b"
    assert [vars(r)["trace_id"] for r in caplog.records if r.name == "chatrpc.access"] == [TRACE_ID]
    assert TRACE_ID not in generate_latest(chat.server.metrics.registry).decode()


@pytest.mark.parametrize(
    "given",
    ["", "00-abc-def-01", f"ff-{TRACE_ID}-{PARENT_ID}-01", f"00-{'0' * 32}-{PARENT_ID}-01", "x" * 600],
    ids=["none", "no-id", "version-ff", "zeros", "long"],
)
@pytest.mark.parametrize("ratio", [0, 1])
async def test_a_new_trace(
    echo: Echo, spans: Spans, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture, given: str, ratio: int
) -> None:
    async with service(echo.base_url, tracing={**ON["tracing"], "sample_ratio": ratio}) as chat:
        metadata = [("traceparent", given), ("tracestate", "a=b,nonsense")]
        await chat.stub.CreateChatCompletion(request(), metadata=metadata)
        if ratio:
            call, (attempt,) = await spans(chat)
            assert call.parent is None
            assert f"{call.context.trace_id:032x}" != TRACE_ID
            assert echo.requests[0].headers["traceparent"] == traceparent(attempt)
    headers = echo.requests[0].headers
    assert int(headers["traceparent"][-2:], 16) & 1 == ratio
    assert "tracestate" not in headers, "it belongs to a traceparent that is not continued"
    assert bool(exporter.get_finished_spans()) == bool(ratio)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_exemplars_and_access_lines_have_the_id(
    echo: Echo, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "chatrpc.access")
    async with service(echo.base_url, **ON) as chat:
        await chat.stub.CreateChatCompletion(request())
        call, _ = await spans(chat)
        exposition = generate_latest(chat.server.metrics.registry).decode()
    trace_id = f"{call.context.trace_id:032x}"
    assert f'# {{trace_id="{trace_id}"}}' in exposition
    assert [vars(r)["trace_id"] for r in caplog.records if r.name == "chatrpc.access"] == [trace_id]


async def test_off(echo: Echo, exporter: InMemorySpanExporter) -> None:
    async with service(echo.base_url) as chat:
        assert chat.server.tracing is None
        await chat.stub.CreateChatCompletion(request(), metadata=[("traceparent", SAMPLED), ("tracestate", "a=b")])
        await chat.stub.CreateChatCompletion(request())
    assert not exporter.get_finished_spans()
    first, second = (received.headers for received in echo.requests)
    assert (first["traceparent"], first["tracestate"]) == (SAMPLED, "a=b")
    assert "traceparent" not in second


async def test_off_by_opentelemetrys_own_variable(
    echo: Echo, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with service(echo.base_url, **ON) as chat:
        await chat.stub.CreateChatCompletion(request(), metadata=[("traceparent", SAMPLED)])
        await chat.stub.CreateChatCompletion(request())
    first, second = (received.headers for received in echo.requests)
    assert first["traceparent"] == SAMPLED
    assert "traceparent" not in second
    assert not exporter.get_finished_spans()


# --- What no span ever says ---

KEYS = {
    "error.type",
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.request.stream",
    "gen_ai.response.finish_reasons",
    "gen_ai.response.time_to_first_chunk",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.reasoning.output_tokens",
    "http.request.method",
    "http.request.resend_count",
    "http.response.status_code",
    "rpc.grpc.status_code",
    "rpc.method",
    "rpc.service",
    "rpc.system",
    "server.address",
    "server.port",
    "url.full",
}
FINISH_REASONS = {"stop", "length", "tool_calls", "content_filter", "function_call", "other"}


def check_says_nothing(found: tuple[ReadableSpan, ...], model: str, base_url: str) -> None:
    """All that is text comes from a closed set: there is no room for what somebody wrote."""
    texts = {"chat", "openai", "grpc", "chatrpc.v1.ChatCompletionService", UNARY, STREAM, "POST", model[:100]}
    texts |= {*Reason, "CANCELLED", "_OTHER", f"{base_url}/chat/completions", "127.0.0.1", "localhost"}
    assert found
    for span in found:
        assert span.name in ("POST", "chat echo", "chat other")
        assert span.status.description is None
        assert [(event.name, dict(event.attributes or {})) for event in span.events] in ([], [("first_chunk", {})])
        assert not span.links
        assert told(span).keys() <= KEYS
        for name, value in told(span).items():
            if isinstance(value, tuple):
                assert set(value) <= FINISH_REASONS
            elif isinstance(value, str):
                assert value in texts, name


@pytest.mark.parametrize("rpc", [UNARY, STREAM])
@pytest.mark.parametrize("fault", FAULTS)
async def test_no_fault_lets_anything_slip(exporter: InMemorySpanExporter, fault: str, rpc: str) -> None:
    upstream = {
        "api_key": KEY,
        "connect_timeout_seconds": 0.2,
        "max_retries": 1,
        "first_chunk_timeout_seconds": 0.4,
        "chunk_gap_timeout_seconds": 0.4,
        "max_response_bytes": 1 << 20,
    }
    limits = {"default_deadline_seconds": 1}
    async with base_url_of(fault) as base_url:
        async with service(base_url, upstream=upstream, limits=limits, **ON) as chat:
            await outcome(getattr(chat.stub, rpc)(request(PROMPT, fault)))
        found = exporter.get_finished_spans()
        check_says_nothing(found, fault, base_url)
        assert not any(canary in span.to_json() for canary in (KEY, PROMPT, "on fire") for span in found)


@pytest.fixture(
    params=[
        (UNARY, http(b'{"choices": [{"index": 0, "finish_reason": "canary", "message": {"content": "canary"}}]}')),
        (STREAM, sse(b'{"choices": [{"index": 0, "finish_reason": "canary", "delta": {"content": "canary"}}]}')),
        *((rpc, http(b'{"error": {"message": "canary", "type": "canary"}}', "400 canary")) for rpc in (UNARY, STREAM)),
        *((rpc, http(b'{"canary": "canary"}', "299 canary", x_request_id="canary")) for rpc in (UNARY, STREAM)),
        (STREAM, sse(b'{"error": {"message": "canary", "code": "canary"}}')),
    ],
    ids=["answer", "stream", "error", "error-stream", "odd", "odd-stream", "error-in-stream"],
)
def answered(request: pytest.FixtureRequest, script: Script) -> str:
    rpc, answer = request.param
    script.answers(answer)
    return str(rpc)


async def test_nothing_of_what_the_upstream_says(answered: str, script: Script, exporter: InMemorySpanExporter) -> None:
    model = "m" * 200
    async with service(script.base_url, upstream={"max_retries": 0}, **ON) as chat:
        await outcome(getattr(chat.stub, answered)(request(PROMPT, model)))
    found = exporter.get_finished_spans()
    check_says_nothing(found, model, script.base_url)
    assert not any("canary" in span.to_json() for span in found)


async def test_an_error_that_nobody_foresaw(
    echo: Echo, spans: Spans, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("chatrpc_server.core.openai.responses.response", lambda *_: 1 / 0)
    async with service(echo.base_url, **ON) as chat:
        assert (await failure(chat.stub.CreateChatCompletion(request()))).code is grpc.StatusCode.INTERNAL
        call, (attempt,) = await spans(chat)
    assert (told(call)["error.type"], told(attempt)["error.type"]) == ("INTERNAL", "_OTHER")
    assert call.status.status_code is attempt.status.status_code is StatusCode.ERROR
    assert call.events == attempt.events == (), "exceptions may quote"


# --- The collector, and what is installed ---


async def test_a_collector_that_is_not_there(
    echo: Echo, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")  # ms: many batches
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # so that nobody else gets the port
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        async with asyncio.timeout(20), service(echo.base_url, tracing={"endpoint": endpoint}) as chat:
            for _ in range(5):
                assert await chat.stub.CreateChatCompletion(request())
    lines = [r for r in caplog.records if r.name.startswith(("opentelemetry", "urllib3")) or r.event == "traces_lost"]
    assert [(line.name, line.levelname) for line in lines] == [("chatrpc.tracing", "WARNING")]
    assert vars(lines[0])["collector"] == f"{endpoint}/v1/traces"


async def test_a_collector_that_never_answers(
    echo: Echo, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "chatrpc_server.telemetry.tracing.STOP_SECONDS", 0.3
    )  # of itself the exporter would wait for ten
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = Server(settings(echo.base_url, tracing={"endpoint": f"http://127.0.0.1:{silent.getsockname()[1]}"}))
        await server.start()
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            await channel.unary_unary(f"/chatrpc.v1.ChatCompletionService/{UNARY}")(request().SerializeToString())
        ticking = asyncio.create_task(tick())
        async with asyncio.timeout(5):
            await server.stop()
        ticking.cancel()
    assert ticks > 5, "the loop was blocked"
    (line,) = [record for record in caplog.records if record.event == "traces_lost"]
    assert vars(line)["cause"] == "not within 0.3 s"


async def test_that_it_works_again_is_told(
    echo: Echo, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "chatrpc.tracing")
    results = iter([span_exporter.SpanExportResult.FAILURE] * 2 + [span_exporter.SpanExportResult.SUCCESS] * 2)
    monkeypatch.setattr(exporter, "export", lambda _: next(results))
    async with service(echo.base_url, **ON) as chat:
        for _ in range(4):
            await chat.stub.CreateChatCompletion(request())
            async with asyncio.timeout(5):
                while chat.value("chatrpc_rpcs_in_flight"):
                    await asyncio.sleep(0.001)
            chat.server.tracing.provider.force_flush()  # type: ignore[union-attr]
    events = [record.event for record in caplog.records if record.name == "chatrpc.tracing"]
    assert events == ["traces_lost", "traces_resumed"]


async def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name in ("chatrpc_server.telemetry.tracing", "chatrpc_server.telemetry.span_exporter"):
            monkeypatch.delitem(sys.modules, name)
        elif name.split(".")[0] == "opentelemetry":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StartError, match=re.escape("pip install 'chatrpc-server[otel]'")):
        await Server(settings("http://127.0.0.1:1", **ON)).start()


async def test_variables_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(StartError, match=r"OTEL_\*: max_queue_size must be a positive integer"):
        await Server(settings("http://127.0.0.1:1", **ON)).start()
