"""Traces: no span holds anything that a caller or an upstream wrote."""

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from chatrpc_echo import Echo
from chatrpc_server.core.errors import Reason
from support import Script, failure, http, outcome, request, service, sse
from support.faults import FAULTS, base_url_of, proxy_of
from support.spans import KEY, ON, PROMPT, STREAM, UNARY, Spans, attributes

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


def check_closed_vocabulary(found: tuple[ReadableSpan, ...], model: str, base_url: str) -> None:
    """Check that every text of a span is of a closed set, so it cannot hold text of a person."""
    texts = {"chat", "openai", "grpc", "chatrpc.v1.ChatCompletionService", UNARY, STREAM, "POST", model[:100]}
    texts |= {*Reason, "CANCELLED", "_OTHER", f"{base_url}/chat/completions", "127.0.0.1", "localhost"}
    assert found
    for span in found:
        assert span.name in ("POST", "chat echo", "chat other")
        assert span.status.description is None
        assert [(event.name, dict(event.attributes or {})) for event in span.events] in ([], [("first_chunk", {})])
        assert not span.links
        assert attributes(span).keys() <= KEYS
        for name, value in attributes(span).items():
            if isinstance(value, tuple):
                assert set(value) <= FINISH_REASONS
            elif isinstance(value, str):
                assert value in texts, name


@pytest.mark.parametrize("rpc", [UNARY, STREAM])
@pytest.mark.parametrize("fault", FAULTS)
async def test_every_fault(exporter: InMemorySpanExporter, fault: str, rpc: str) -> None:
    upstream = {
        "api_key": KEY,
        "connect_timeout_seconds": 0.2,
        "max_retries": 1,
        "first_chunk_timeout_seconds": 0.4,
        "chunk_gap_timeout_seconds": 0.4,
        "max_event_bytes": 1 << 20,
        "max_response_bytes": 1 << 20,
    }
    limits = {"default_deadline_seconds": 1}
    async with base_url_of(fault) as base_url, proxy_of(fault) as proxy:
        async with service(base_url, upstream={**upstream, **proxy}, limits=limits, **ON) as chat:
            await outcome(getattr(chat.stub, rpc)(request(PROMPT, fault)))
        found = exporter.get_finished_spans()
        check_closed_vocabulary(found, fault, base_url)
        assert not any(canary in span.to_json() for canary in (KEY, PROMPT, "on fire") for span in found)


@pytest.fixture(
    params=[
        (UNARY, http(b'{"choices": [{"index": 0, "finish_reason": "canary", "message": {"content": "canary"}}]}')),
        (STREAM, sse(b'{"choices": [{"index": 0, "finish_reason": "canary", "delta": {"content": "canary"}}]}')),
        *((rpc, http(b'{"error": {"message": "canary", "type": "canary"}}', "400 canary")) for rpc in (UNARY, STREAM)),
        *((rpc, http(b'{"canary": "canary"}', "299 canary", x_request_id="canary")) for rpc in (UNARY, STREAM)),
        (STREAM, sse(b'{"error": {"message": "canary", "code": "canary"}}')),
    ],
    ids=["unary", "stream", "error", "error-stream", "odd", "odd-stream", "error-in-stream"],
)
def answered(request: pytest.FixtureRequest, script: Script) -> str:
    rpc, response = request.param
    script.respond_with(response)
    return str(rpc)


async def test_texts_of_the_upstream(answered: str, script: Script, exporter: InMemorySpanExporter) -> None:
    model = "m" * 200
    async with service(script.base_url, upstream={"max_retries": 0}, **ON) as chat:
        await outcome(getattr(chat.stub, answered)(request(PROMPT, model)))
    found = exporter.get_finished_spans()
    check_closed_vocabulary(found, model, script.base_url)
    assert not any("canary" in span.to_json() for span in found)


async def test_an_unexpected_error(
    echo: Echo, spans: Spans, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("chatrpc_server.core.openai.responses.parse_response", lambda *_: 1 / 0)
    async with service(echo.base_url, **ON) as chat:
        assert (await failure(chat.stub.CreateChatCompletion(request()))).code is grpc.StatusCode.INTERNAL
        call, (attempt,) = await spans(chat)
    assert (attributes(call)["error.type"], attributes(attempt)["error.type"]) == ("INTERNAL", "_OTHER")
    assert call.status.status_code is attempt.status.status_code is StatusCode.ERROR
    assert call.events == attempt.events == (), "spans must not hold exceptions, which may quote"
