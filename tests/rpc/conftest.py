"""Fixtures for the tests over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from chatrpc_server.telemetry import span_exporter
from support import Script, Service
from support.spans import Spans


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=["plain", "TLS"])
async def any_script(
    request: pytest.FixtureRequest, authority: trustme.CA, tmp_path: Path
) -> AsyncIterator[tuple[Script, dict[str, Any]]]:
    """A scripted upstream, plain or with TLS, and the settings that it requires."""
    if request.param == "plain":
        async with Script() as script:
            yield script, {}
    else:
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        async with Script(authority.issue_cert("localhost")) as script:
            yield script, {"ca_file": tmp_path / "ca.pem"}


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """An exporter that keeps spans in memory, in place of the OTLP exporter."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(span_exporter, "OTLPSpanExporter", lambda _: exporter)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    """A reader of the only call's spans: its own, and those of its attempts."""

    async def of(chat: Service) -> tuple[ReadableSpan, list[ReadableSpan]]:
        assert chat.server.tracing
        async with asyncio.timeout(5):
            while True:
                chat.server.tracing.provider.force_flush()
                found = exporter.get_finished_spans()
                if calls := [span for span in found if span.kind is SpanKind.SERVER]:
                    break
                await asyncio.sleep(0.001)  # the caller may see the end slightly earlier
        (call,) = calls
        attempts = [span for span in found if span is not call]
        for attempt in attempts:
            assert attempt.kind is SpanKind.CLIENT
            assert (attempt.context.trace_id, attempt.parent) == (call.context.trace_id, call.context)
        return call, attempts

    return of
