"""Traces that a real process sends to a receiver in another process."""

import json
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from support import collect, request
from support.process import ANY_PORTS, Process, run, running

RECEIVER = [sys.executable, str(Path(__file__).parents[1] / "support" / "otlp_receiver.py")]
KEY, PROMPT = "sk-canary-0123456789abcdef", "canary-of-the-prompt"
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def receiver() -> Iterator[Process]:
    with running(command=RECEIVER) as process:
        yield process


async def _calls(address: str) -> None:
    """Make one unary and one streaming call in the caller's trace."""
    async with grpc.aio.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = ChatCompletionServiceStub(channel)
        metadata = [("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01")]
        assert await stub.CreateChatCompletion(request(PROMPT, "echo:status=503,times=1"), metadata=metadata)
        assert await collect(stub.CreateChatCompletionStream(request(PROMPT), metadata=metadata))


def _attributes(line: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in line["span"]["attributes"]}


@pytest.mark.parametrize("workers", [1, 2])
async def test_spans_arrive(echo: Echo, receiver: Process, workers: int) -> None:
    environ = {
        "OPENAI_BASE_URL": echo.base_url,
        "OPENAI_API_KEY": KEY,
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.line("http://"),
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=ours",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "CHATRPC_UPSTREAM__INITIAL_BACKOFF_SECONDS": "0.01",
        "CHATRPC_MODELS": "echo",
    }
    with running("serve", *ANY_PORTS, f"--workers={workers}", **environ) as process:
        await _calls(process.log("serving")["listen"])
        process.signal(signal.SIGTERM)  # at once, because unsent spans are sent at the exit
        assert process.wait() == 0
        assert KEY not in process.output
    lines = [receiver.line('"span"') for _ in range(5)]
    assert not any(canary in line for line in lines for canary in (KEY, PROMPT))
    exported = [json.loads(line) for line in lines]
    for each in exported:
        resource = {key: value["stringValue"] for key, value in each["resource"].items()}
        assert (resource["service.name"], resource["deployment.environment.name"]) == ("chatrpc-server", "test")
        assert each["headers"]["x-tenant"] == "ours"
        assert each["span"]["traceId"] == TRACE_ID
    calls = {_attributes(each)["rpc.method"]: each["span"] for each in exported if "SERVER" in each["span"]["kind"]}
    assert {method: (call["parentSpanId"], call["name"]) for method, call in calls.items()} == {
        "CreateChatCompletion": (PARENT_ID, "chat other"),
        "CreateChatCompletionStream": (PARENT_ID, "chat echo"),
    }
    parents = {span["spanId"]: method for method, span in calls.items()}
    attempts = [
        (parents[each["span"]["parentSpanId"]], _attributes(each)["http.response.status_code"])
        for each in exported
        if "CLIENT" in each["span"]["kind"]
    ]
    assert sorted(attempts) == [
        ("CreateChatCompletion", "200"),
        ("CreateChatCompletion", "503"),
        ("CreateChatCompletionStream", "200"),
    ]
    sent = [received.headers["traceparent"].split("-")[2] for received in echo.requests]
    assert sorted(sent) == sorted(each["span"]["spanId"] for each in exported if "CLIENT" in each["span"]["kind"])


async def test_a_configured_service_name(echo: Echo, receiver: Process) -> None:
    environ = {"OPENAI_BASE_URL": echo.base_url, "OTEL_SERVICE_NAME": "gateway"}
    endpoint = receiver.line("http://")
    with running("serve", *ANY_PORTS, f"--tracing.endpoint={endpoint}", **environ) as process:
        await _calls(process.log("serving")["listen"])
        process.signal()
        assert process.wait() == 0
    assert json.loads(receiver.line('"span"'))["resource"]["service.name"]["stringValue"] == "gateway"


async def test_without_a_receiver(echo: Echo) -> None:
    """Calls and drain are unaffected, and one log line reports the loss."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # so that no other process gets the port
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with running("serve", *ANY_PORTS, f"--tracing.endpoint={endpoint}", OPENAI_BASE_URL=echo.base_url) as process:
            await _calls(process.log("serving")["listen"])
            process.signal()
            assert process.wait() == 0
    warnings = [line for line in process.lines if '"warning"' in line or '"error"' in line]
    assert len(warnings) == 1, warnings
    assert "traces_lost" in warnings[0]
    assert "Traceback" not in process.output


def test_without_the_extra(tmp_path: Path) -> None:
    """A module that raises, first on the path, stands for one that is not installed."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ModuleNotFoundError")
    result = run("serve", *ANY_PORTS, "--tracing.endpoint=http://127.0.0.1:4318", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("chatrpc-server: tracing.endpoint: OpenTelemetry is not installed")
    assert "pip install 'chatrpc-server[otel]'" in result.stderr
