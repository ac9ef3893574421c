"""OpenTelemetry traces: one span per call, with one child span per HTTP request to the upstream.

A layer around each call, and an `UpstreamObserver` around another observer. Names follow the GenAI, RPC and HTTP
semantic conventions. No span holds a prompt, a completion, a key or an upstream's error text: the `ErrorInfo.reason`
gives the cause of a failure.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from functools import cache
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from chatrpc_server import __version__
from chatrpc_server.core.call import Attempt, Call, Headers, UpstreamIdentity
from chatrpc_server.core.errors import ChatError
from chatrpc_server.core.observer import UpstreamObserver
from chatrpc_server.telemetry.labels import FINISH_REASONS, GRPC_CODES, OPERATION, OTHER
from chatrpc_server.telemetry.span_exporter import ReportingSpanExporter

STOP_SECONDS = 3.0
"""Longest export of the last spans; less than the time in which workers must exit."""
FIRST_CHUNK = "first_chunk"
"""Name of the event at a stream's first chunk. The conventions name only the time until then."""

_MODEL_CHARACTERS = 100
_SERVER_FAULTS = ("Unknown", "DeadlineExceeded", "Unimplemented", "Internal", "Unavailable", "DataLoss")
"""The codes that mark a server's span as an error. All other errors are the caller's fault."""
_WITHOUT_REASON = {"Canceled": "CANCELLED", "DeadlineExceeded": "DEADLINE_EXCEEDED"}
"""`error.type` for codes of calls without a status from the service."""
_OTHER_ERROR = "_OTHER"
"""`error.type` for an error without another value."""


class Tracing:
    """The traces of one server, with its own provider, never the global one."""

    def __init__(
        self,
        endpoint: str,
        sample_ratio: float,
        rpcs: Collection[tuple[str, str, str]],
        model_label: Callable[[str], str],
    ) -> None:
        """Create the provider. Raises ValueError or RuntimeError if OTEL_* variables are invalid.

        `endpoint`: the collector's URL before /v1/traces. `sample_ratio`: the part of traces started here that is kept.
        `rpcs`: type, service and method of each RPC.
        """
        self._model_label = model_label
        self._attributes: dict[str, dict[str, AttributeValue]] = {
            method: {
                "gen_ai.operation.name": OPERATION,
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                **({"gen_ai.request.stream": True} if kind == "server_stream" else {}),
            }
            for kind, service, method in rpcs
        }
        self._exporter = ReportingSpanExporter(f"{endpoint}/v1/traces")
        self.provider = TracerProvider(
            ParentBased(TraceIdRatioBased(sample_ratio)), _resource(), shutdown_on_exit=False
        )
        self.provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self.provider.get_tracer("chatrpc_server", __version__)

    @asynccontextmanager
    async def __call__(self, call: Call, context: object) -> AsyncIterator[None]:
        """Start the call's span before the layers inside, so that they know its trace. Raise no error of its own."""
        span = self._tracer.start_span(OPERATION, _parent(call), SpanKind.SERVER, self._attributes[call.method])
        span_context = span.get_span_context()
        if not span_context.is_valid:  # because OTEL_SDK_DISABLED is set
            yield
            return
        if not call.trace_id:  # a tracestate is valid only beside a valid traceparent
            call.forward = [header for header in call.forward if header[0] != "tracestate"]
        call.forward = _with_traceparent(call.forward, span_context)
        call.span, call.trace_id = span, f"{span_context.trace_id:032x}"
        call.sampled = span_context.trace_flags.sampled
        try:
            yield
        finally:
            if span.is_recording():
                self._end(span, call)

    def around(self, inner: UpstreamObserver) -> UpstreamObserver:
        """Return `inner` with a span around each request."""
        return _AttemptSpans(inner, self._tracer)

    async def close(self) -> None:
        """Export the remaining spans, for at most `STOP_SECONDS`."""
        loop, finished = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self.provider.shutdown()
            with suppress(RuntimeError):  # the loop is closed, so no code waits
                loop.call_soon_threadsafe(finished.set)

        # A separate thread, because asyncio waits for its own threads when the loop is closed.
        threading.Thread(target=shut_down, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await finished.wait()
        except TimeoutError:
            self._exporter.abort(f"not within {STOP_SECONDS:g} s")

    def _end(self, span: Span, call: Call) -> None:
        span.update_name(f"{OPERATION} {self._model_label(call.model)}")
        code = call.code or "Unknown"
        attributes = {"gen_ai.provider.name": call.upstream.provider, **_server(call.upstream)}
        attributes["rpc.grpc.status_code"] = GRPC_CODES.index(code)
        if call.model:
            attributes["gen_ai.request.model"] = call.model[:_MODEL_CHARACTERS]
        if code != "OK":
            attributes["error.type"] = str(call.reason) or _WITHOUT_REASON.get(code, _OTHER_ERROR)
        reasons = [reason for _, reason in sorted(call.finish_reasons.items()) if reason]
        if reasons:
            attributes["gen_ai.response.finish_reasons"] = [r if r in FINISH_REASONS else OTHER for r in reasons]
        if call.chunks and call.first_message_at is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = call.first_message_at - call.started
            ago_seconds = time.monotonic() - call.first_message_at
            span.add_event(FIRST_CHUNK, timestamp=time.time_ns() - int(ago_seconds * 1e9))
        span.set_attributes(attributes | _usage(call))
        if code in _SERVER_FAULTS:
            span.set_status(StatusCode.ERROR)
        span.end()


class _AttemptSpans:
    """An observer around another: one span per HTTP request. The upstream receives the span's id as its parent."""

    def __init__(self, inner: UpstreamObserver, tracer: Tracer) -> None:
        self._inner = inner
        self._tracer = tracer

    @contextmanager
    def request(self, call: Call, attempt: Attempt) -> Iterator[Headers]:
        """See `UpstreamObserver`. If the call is not sampled, the headers are the call's."""
        if not (isinstance(call.span, Span) and call.span.is_recording()):
            with self._inner.request(call, attempt) as headers:
                yield headers
            return
        parent = set_span_in_context(call.span, Context())
        attributes = {"http.request.method": "POST", "url.full": attempt.upstream.url, **_server(attempt.upstream)}
        span = self._tracer.start_span("POST", parent, SpanKind.CLIENT, attributes)
        failure: str | None = None
        try:
            with self._inner.request(call, attempt) as headers:
                yield _with_traceparent(headers, span.get_span_context())
        except ChatError as error:
            failure = error.reason.value
            raise
        except (asyncio.CancelledError, GeneratorExit):
            # No error status, because the service or its caller cancelled: the upstream has not failed.
            span.set_attribute("error.type", "CANCELLED")
            raise
        except BaseException:
            failure = _OTHER_ERROR
            raise
        finally:
            if attempt is not call.attempts[0]:
                span.set_attribute("http.request.resend_count", len(call.attempts) - 1)
            if attempt.status is not None:
                span.set_attribute("http.response.status_code", attempt.status)
            if failure:
                span.set_attribute("error.type", failure)
                span.set_status(StatusCode.ERROR)
            span.end()

    def gaps(self, call: Call, attempt: Attempt) -> AbstractContextManager[Callable[[float], None]]:
        """See `UpstreamObserver`."""
        return self._inner.gaps(call, attempt)


@cache
def _server(upstream: UpstreamIdentity) -> dict[str, AttributeValue]:
    url = urlsplit(upstream.url)
    return {
        "server.address": url.hostname or "",
        "server.port": url.port or (443 if url.scheme == "https" else 80),
    }


def _resource() -> Resource:
    """Return the resource of all spans; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override it."""
    defaults = Resource.create({"service.name": "chatrpc-server", "service.version": __version__})
    return defaults.merge(OTELResourceDetector().detect())


def _parent(call: Call) -> Context:
    """Return the context of the caller's traceparent, which is valid if the pipeline has set a trace id.

    It is not parsed by OpenTelemetry, whose parser logs invalid values: callers could fill the log.
    """
    if not call.trace_id:
        return Context()
    _, trace_id, span_id, flags, *_ = dict(call.forward)["traceparent"].split("-")
    caller = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(caller), Context())


def _with_traceparent(headers: Headers, parent: SpanContext) -> Headers:
    value = f"00-{parent.trace_id:032x}-{parent.span_id:016x}-{parent.trace_flags:02x}"
    return [*(header for header in headers if header[0] != "traceparent"), ("traceparent", value)]


def _usage(call: Call) -> dict[str, AttributeValue]:
    """Return the token counts that the upstream reports. A count of 0 is omitted, because it means not reported."""
    if call.usage is None:
        return {}
    tokens = {
        "gen_ai.usage.input_tokens": call.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": call.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": call.usage.prompt_tokens_details.cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": call.usage.completion_tokens_details.reasoning_tokens,
    }
    return {name: count for name, count in tokens.items() if count > 0}
