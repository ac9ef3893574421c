"""Traces: the spans of a call and their attributes."""

import asyncio
import logging
import re

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client.openmetrics.exposition import generate_latest

from chatrpc_echo import Echo
from support import Script, collect, failure, http, outcome, request, service
from support.spans import (
    ON,
    PARENT_ID,
    SAMPLED,
    STREAM,
    TRACE_ID,
    UNARY,
    UNSAMPLED,
    Spans,
    attributes,
    rpcs,
    traceparent,
)


async def test_unary(echo: Echo, spans: Spans) -> None:
    async with service(echo.base_url, **ON) as chat:
        usage = (await chat.stub.CreateChatCompletion(request())).usage
        call, (attempt,) = await spans(chat)
    port = int(echo.base_url.rsplit(":")[-1].removesuffix("/v1"))
    upstream = {"server.address": "127.0.0.1", "server.port": port}
    assert (call.name, call.status.status_code, call.events) == ("chat echo", StatusCode.UNSET, ())
    assert attributes(call) == upstream | {
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
    assert attributes(attempt) == upstream | {
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
    seconds = attributes(call)["gen_ai.response.time_to_first_chunk"]
    assert seconds >= 0.05
    # The span begins slightly after the call, by another clock.
    assert abs((first.timestamp - call.start_time) / 1e9 - seconds) < 0.04
    assert call.start_time < attempt.start_time < first.timestamp < attempt.end_time < call.end_time
    assert attributes(call)["gen_ai.request.stream"] is True
    assert (call.name, attributes(call)["gen_ai.request.model"]) == ("chat other", "echo:delay=0.05")


async def test_tokens_of_every_kind(script: Script, spans: Spans) -> None:
    usage = b'{"prompt_tokens": 9, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 7},'
    usage += b' "completion_tokens_details": {"reasoning_tokens": 6}}'
    choices = b'[{"index": 1, "finish_reason": "length"}, {"index": 0, "finish_reason": "stop"}]'
    script.respond_with(http(b'{"choices": %b, "usage": %b}' % (choices, usage)))
    async with service(script.base_url, **ON) as chat:
        await chat.stub.CreateChatCompletion(request())
        call, _ = await spans(chat)
    assert {name.removeprefix("gen_ai.usage."): n for name, n in attributes(call).items() if ".usage." in name} == {
        "input_tokens": 9,
        "output_tokens": 8,
        "cache_read.input_tokens": 7,
        "reasoning.output_tokens": 6,
    }
    assert attributes(call)["gen_ai.response.finish_reasons"] == ("stop", "length")


@rpcs
async def test_retries(echo: Echo, spans: Spans, rpc: str) -> None:
    async with service(echo.base_url, **ON) as chat:
        await outcome(getattr(chat.stub, rpc)(request(model="echo:status=503,times=2")))
        call, attempts = await spans(chat)
    assert call.status.status_code is StatusCode.UNSET, "the call succeeded in the end"
    statuses = [
        (attributes(a)["http.response.status_code"], a.status.status_code, attributes(a).get("error.type"))
        for a in attempts
    ]
    assert statuses == [(503, StatusCode.ERROR, "UPSTREAM_OVERLOADED")] * 2 + [(200, StatusCode.UNSET, None)]
    assert [attributes(attempt).get("http.request.resend_count") for attempt in attempts] == [None, 1, 2]
    sent = [received.headers["traceparent"] for received in echo.requests]
    assert sent == [traceparent(attempt) for attempt in attempts]


@rpcs
@pytest.mark.parametrize(
    ("model", "limits", "code", "error_type", "is_error", "attempt"),
    [
        ("echo:status=400", {}, 3, "UPSTREAM_INVALID_REQUEST", False, (400, "UPSTREAM_INVALID_REQUEST")),
        ("echo:status=401", {}, 13, "UPSTREAM_UNAUTHENTICATED", True, (401, "UPSTREAM_UNAUTHENTICATED")),
        ("echo:status=429", {}, 8, "UPSTREAM_RATE_LIMITED", False, (429, "UPSTREAM_RATE_LIMITED")),
        ("echo:status=503", {}, 14, "UPSTREAM_OVERLOADED", True, (503, "UPSTREAM_OVERLOADED")),
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
    assert (attributes(call)["rpc.grpc.status_code"], attributes(call)["error.type"]) == (code, error_type)
    assert call.status.status_code is (StatusCode.ERROR if is_error else StatusCode.UNSET)
    assert call.status.description is None
    seen = [(attributes(a).get("http.response.status_code"), attributes(a)["error.type"]) for a in attempts]
    assert seen == ([attempt] if attempt else [])
    assert all(a.status.is_unset == (attributes(a)["error.type"] == "CANCELLED") for a in attempts)


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
    assert (attributes(span)["rpc.grpc.status_code"], attributes(span)["error.type"]) == (1, "CANCELLED")
    assert attributes(attempt)["error.type"] == "CANCELLED"
    assert span.status.status_code is attempt.status.status_code is StatusCode.UNSET


@rpcs
async def test_a_callers_trace_is_continued(echo: Echo, spans: Spans, rpc: str) -> None:
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
async def test_a_callers_unsampled_flag_is_respected(
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
    assert "tracestate" not in headers, "tracestate belongs to a traceparent that is not continued"
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
