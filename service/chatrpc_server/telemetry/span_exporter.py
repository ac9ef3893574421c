"""Exports spans with OpenTelemetry's OTLP exporter over HTTP; logs a failure once, not once per batch."""

import logging
import threading
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = logging.getLogger("chatrpc.tracing")


class _LastLogMessage(logging.Filter):
    """A filter that drops the log lines of OpenTelemetry's exporter and keeps the last message of each thread."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.local()  # each exporter sends from its own thread

    def filter(self, record: logging.LogRecord) -> bool:
        self._thread.message = record.getMessage()
        return False

    @property
    def text(self) -> str:
        """The last message of the current thread."""
        return getattr(self._thread, "message", "")


_last_log_message = _LastLogMessage()


class ReportingSpanExporter(SpanExporter):
    """An exporter to a collector. It logs one line when export starts to fail, and one when it resumes."""

    def __init__(self, url: str) -> None:
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(_last_log_message)
        self._url = url
        self._exporter: SpanExporter = OTLPSpanExporter(url)
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send the spans; block the calling thread, which is not the event loop's."""
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._report_failure(_last_log_message.text)
        elif self._failing:
            self._failing = False
            log.info("trace export resumed", extra={"event": "traces_resumed", "collector": self._url})
        return result

    def abort(self, cause: str) -> None:
        """Abort the export in progress. Called from another thread."""
        self._report_failure(cause)
        self._exporter.shutdown()

    def shutdown(self) -> None:
        """Stop sending."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Return True, because this exporter buffers nothing."""
        return True

    def _report_failure(self, cause: str) -> None:
        if not self._failing:
            self._failing = True
            log.warning(
                "trace export failed; traces are lost until it succeeds",
                extra={"event": "traces_lost", "collector": self._url, "cause": cause},
            )
