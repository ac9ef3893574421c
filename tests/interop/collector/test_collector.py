"""Traces of a real process, received by an OpenTelemetry Collector."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from support import collect, failure, request
from support.process import ANY_PORTS, Process, running

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONFIG = """
receivers:
  otlp:
    protocols:
      http:
        endpoint: {endpoint}
exporters:
  debug:
    verbosity: detailed
service:
  telemetry:
    metrics:
      level: none
  pipelines:
    traces:
      receivers: [otlp]
      exporters: [debug]
"""


@pytest.fixture
def endpoint() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def collector(endpoint: str, tmp_path: Path) -> Iterator[Process]:
    config = tmp_path / "collector.yaml"
    config.write_text(CONFIG.format(endpoint=endpoint))
    with running("--config", str(config), command=[os.environ["OTELCOL"]]) as process:
        process.line("Everything is ready")
        yield process


def printed_spans(lines: list[str]) -> list[dict[str, str]]:
    """Return the spans that the collector has printed, each with its attributes among its fields."""
    spans: list[dict[str, str]] = []
    for line in lines:
        if re.match(r"Span #\d+", line):
            spans.append({})
        elif spans and (field := re.match(r"\s+(?:-> )?([\w. ]+?)\s*: (.*)", line)):
            spans[-1].setdefault(field[1], field[2])  # fields of events follow those of the span
    return spans


async def test_a_collector_accepts_the_spans(echo: Echo, collector: Process, endpoint: str) -> None:
    options = [
        "--models=echo",
        "--upstream.initial-backoff-seconds=0.01",
        f"--tracing.endpoint=http://{endpoint}",
    ]
    with running("serve", *ANY_PORTS, *options, OPENAI_BASE_URL=echo.base_url) as process:
        address = process.log("serving")["listen"]
        async with grpc.aio.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
            stub, metadata = ChatCompletionServiceStub(channel), [("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01")]
            assert await stub.CreateChatCompletion(request(model="echo:status=503,times=1"), metadata=metadata)
            assert await collect(stub.CreateChatCompletionStream(request(), metadata=metadata))
            assert await failure(stub.CreateChatCompletion(request(model="echo:status=401"), metadata=metadata))
        process.signal()
        assert process.wait() == 0
        assert "traces_lost" not in process.output
    collector.signal()
    assert collector.wait() == 0
    spans = printed_spans(collector.lines)
    assert {span["Trace ID"] for span in spans} == {TRACE_ID}
    calls = [span for span in spans if span["Kind"] == "Server"]
    assert [(span["Name"], span["Parent ID"], span["Status code"], span["rpc.grpc.status_code"]) for span in calls] == [
        ("chat other", PARENT_ID, "Unset", "Int(0)"),
        ("chat echo", PARENT_ID, "Unset", "Int(0)"),
        ("chat other", PARENT_ID, "Error", "Int(13)"),
    ]
    assert calls[2]["error.type"] == "Str(UPSTREAM_UNAUTHENTICATED)"
    statuses = [
        [s["http.response.status_code"] for s in spans if s["Kind"] == "Client" and s["Parent ID"] == call["ID"]]
        for call in calls
    ]
    assert statuses == [["Int(503)", "Int(200)"], ["Int(200)"], ["Int(401)"]]
    assert any("service.name: Str(chatrpc-server)" in line for line in collector.lines)
    assert any("Name: first_chunk" in re.sub(r"\s+:", ":", line) for line in collector.lines)
