"""How spans leave: OpenTelemetry's OTLP exporter over HTTP, with one line in the log where it would write many."""

import logging
import threading
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = logging.getLogger("chatrpc.tracing")


class _Said(logging.Filter):
    """Keeps the lines of OpenTelemetry's exporter, several for each batch, out of the log; has the last one instead."""

    def __init__(self) -> None:
        super().__init__()
        self._here = threading.local()  # each exporter sends from a thread of its own

    def filter(self, record: logging.LogRecord) -> bool:
        self._here.last = record.getMessage()
        return False

    @property
    def last(self) -> str:
        """What it said last in this thread."""
        return getattr(self._here, "last", "")


_said = _Said()


class Delivery(SpanExporter):
    """Sends spans to a collector. That it cannot is told once, until it can again."""

    def __init__(self, url: str) -> None:
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(_said)
        self._url = url
        self._exporter: SpanExporter = OTLPSpanExporter(url)
        self._fails = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends them, in whose thread it may take its time."""
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._failed(_said.last)
        elif self._fails:
            self._fails = False
            log.info("trace export resumed", extra={"event": "traces_resumed", "collector": self._url})
        return result

    def give_up(self, cause: str) -> None:
        """Ends what is being sent, from another thread."""
        self._failed(cause)
        self._exporter.shutdown()

    def shutdown(self) -> None:
        """Nothing is sent any more."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is kept here."""
        return True

    def _failed(self, cause: str) -> None:
        if not self._fails:
            self._fails = True
            log.warning(
                "trace export failed; traces are lost until it succeeds",
                extra={"event": "traces_lost", "collector": self._url, "cause": cause},
            )
