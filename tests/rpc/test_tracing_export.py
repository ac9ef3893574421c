"""Traces: a collector that fails, and an installation without the extra."""

import asyncio
import logging
import re
import socket
import sys

import grpc
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chatrpc_echo import Echo
from chatrpc_server.process.lifecycle import StartError
from chatrpc_server.server import Server
from chatrpc_server.telemetry import span_exporter
from support import request, service, settings
from support.spans import ON, UNARY


async def test_an_unreachable_collector(
    echo: Echo, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")  # ms: many batches
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # so that no other process gets the port
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with asyncio.timeout(20), service(echo.base_url, tracing={"endpoint": endpoint}) as chat:
            for _ in range(5):
                assert await chat.stub.CreateChatCompletion(request())
    lines = [r for r in caplog.records if r.name.startswith(("opentelemetry", "urllib3")) or r.event == "traces_lost"]
    assert [(line.name, line.levelname) for line in lines] == [("chatrpc.tracing", "WARNING")]
    assert vars(lines[0])["collector"] == f"{endpoint}/v1/traces"


async def test_a_collector_that_never_responds(
    echo: Echo, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatrpc_server.telemetry.tracing.STOP_SECONDS", 0.3)  # the exporter's own limit is ten seconds
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


async def test_the_recovery_is_logged(
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


async def test_invalid_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(StartError, match=r"OTEL_\*: max_queue_size must be a positive integer"):
        await Server(settings("http://127.0.0.1:1", **ON)).start()
