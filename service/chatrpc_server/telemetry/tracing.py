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
from chatrpc_server.core.call import Call, Headers
from chatrpc_server.core.errors import ChatError
from chatrpc_server.core.observer import UpstreamObserver
from chatrpc_server.settings import TracingSettings, UpstreamSettings
from chatrpc_server.telemetry.labels import FINISH_REASONS, GRPC_CODES, OPERATION, OTHER
from chatrpc_server.telemetry.span_exporter import ReportingSpanExporter

STOP_SECONDS = 3.0
"""How long the last spans may take to leave. Less than workers are given to end."""
FIRST_CHUNK = "first_chunk"
"""The event of a stream's first chunk. The conventions have no name for it, only for the time until then."""

_MODEL_CHARACTERS = 100
_SERVER_FAULTS = ("Unknown", "DeadlineExceeded", "Unimplemented", "Internal", "Unavailable", "DataLoss")
"""The codes that make a server's span an error; with any other the caller has to change something."""
_WITHOUT_REASON = {"Canceled": "CANCELLED", "DeadlineExceeded": "DEADLINE_EXCEEDED"}
"""Codes of calls that nothing was answered to, as `error.type`."""
_UNFORESEEN = "_OTHER"


class Tracing:
    """The traces of one server, by a provider of their own: never the global one."""

    def __init__(
        self,
        settings: TracingSettings,
        upstream: UpstreamSettings,
        rpcs: Collection[tuple[str, str, str]],
        model_label: Callable[[str], str],
    ) -> None:
        """`rpcs`: type, service and method of each. Raises ValueError or RuntimeError if OTEL_* variables are wrong."""
        self._model_label = model_label
        url = urlsplit(upstream.base_url)
        server: dict[str, AttributeValue] = {
            "server.address": url.hostname or "",
            "server.port": url.port or (443 if url.scheme == "https" else 80),
        }
        self._of_rpc: dict[str, dict[str, AttributeValue]] = {
            method: {
                "gen_ai.operation.name": OPERATION,
                "gen_ai.provider.name": upstream.provider,
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                **({"gen_ai.request.stream": True} if kind == "server_stream" else {}),
                **server,
            }
            for kind, service, method in rpcs
        }
        self._of_attempt: dict[str, AttributeValue] = {
            "http.request.method": "POST",
            "url.full": f"{upstream.base_url}/chat/completions",
            **server,
        }
        self._exporter = ReportingSpanExporter(f"{settings.endpoint}/v1/traces")
        self.provider = TracerProvider(
            ParentBased(TraceIdRatioBased(settings.sample_ratio)), _resource(), shutdown_on_exit=False
        )
        self.provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self.provider.get_tracer("chatrpc_server", __version__)

    @asynccontextmanager
    async def __call__(self, call: Call, context: object) -> AsyncIterator[None]:
        """The layer: puts the call into its trace, so that layers inside know it; raises nothing of its own."""
        span = self._tracer.start_span(OPERATION, _parent(call), SpanKind.SERVER, self._of_rpc[call.method])
        place = span.get_span_context()
        if not place.is_valid:  # OTEL_SDK_DISABLED
            yield
            return
        if not call.trace_id:  # a tracestate belongs to a traceparent, and none that is of use was there
            call.forward = [header for header in call.forward if header[0] != "tracestate"]
        call.forward = _with_traceparent(call.forward, place)
        call.span, call.trace_id, call.sampled = span, f"{place.trace_id:032x}", place.trace_flags.sampled
        try:
            yield
        finally:
            if span.is_recording():
                self._end(span, call)

    def watch(self, inner: UpstreamObserver) -> UpstreamObserver:
        """`inner`, with a span around each request."""
        return _Attempts(inner, self._tracer, self._of_attempt)

    async def close(self) -> None:
        """Sends what is left, for `STOP_SECONDS` at the longest."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self.provider.shutdown()
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ended.set)

        # A thread of its own, which may outlast us: those of asyncio are waited for when the loop is closed.
        threading.Thread(target=shut_down, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await ended.wait()
        except TimeoutError:
            self._exporter.abort(f"not within {STOP_SECONDS:g} s")

    def _end(self, span: Span, call: Call) -> None:
        span.update_name(f"{OPERATION} {self._model_label(call.model)}")
        code = call.code or "Unknown"
        attributes: dict[str, AttributeValue] = {"rpc.grpc.status_code": GRPC_CODES.index(code)}
        if call.model:
            attributes["gen_ai.request.model"] = call.model[:_MODEL_CHARACTERS]
        if code != "OK":
            attributes["error.type"] = str(call.reason) or _WITHOUT_REASON.get(code, _UNFORESEEN)
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


class _Attempts:
    """A `UpstreamObserver` around another: a span for each HTTP request, whose id the upstream gets as its parent."""

    def __init__(self, inner: UpstreamObserver, tracer: Tracer, attributes: dict[str, AttributeValue]) -> None:
        self._inner = inner
        self._tracer = tracer
        self._attributes = attributes

    @contextmanager
    def request(self, call: Call) -> Iterator[Headers]:
        """See `UpstreamObserver`. Of calls that are not sampled the headers are those of the call."""
        if not (isinstance(call.span, Span) and call.span.is_recording()):
            with self._inner.request(call) as headers:
                yield headers
            return
        span = self._tracer.start_span(
            "POST", set_span_in_context(call.span, Context()), SpanKind.CLIENT, self._attributes
        )
        failure: str | None = None
        try:
            with self._inner.request(call) as headers:
                yield _with_traceparent(headers, span.get_span_context())
        except ChatError as error:
            failure = error.reason.value
            raise
        except (asyncio.CancelledError, GeneratorExit):
            span.set_attribute("error.type", "CANCELLED")  # by our side, so it is no failure of the upstream's
            raise
        except BaseException:
            failure = _UNFORESEEN
            raise
        finally:
            if call.attempts > 1:
                span.set_attribute("http.request.resend_count", call.attempts - 1)
            if call.upstream_status is not None:
                span.set_attribute("http.response.status_code", call.upstream_status)
            if failure:
                span.set_attribute("error.type", failure)
                span.set_status(StatusCode.ERROR)
            span.end()

    def gaps(self, call: Call) -> AbstractContextManager[Callable[[float], None]]:
        """See `UpstreamObserver`."""
        return self._inner.gaps(call)


def _resource() -> Resource:
    """Who sends the spans; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES know better."""
    ours = Resource.create({"service.name": "chatrpc-server", "service.version": __version__})
    return ours.merge(OTELResourceDetector().detect())


def _parent(call: Call) -> Context:
    """What the caller's traceparent names. The pipeline has found it sound where the call has a trace's id.

    OpenTelemetry's own parser would log what callers send: it is theirs to make up.
    """
    if not call.trace_id:
        return Context()
    _, trace_id, span_id, flags, *_ = dict(call.forward)["traceparent"].split("-")
    place = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(place), Context())


def _with_traceparent(headers: Headers, place: SpanContext) -> Headers:
    value = f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"
    return [*(header for header in headers if header[0] != "traceparent"), ("traceparent", value)]


def _usage(call: Call) -> dict[str, AttributeValue]:
    """Tokens as the upstream reports them; 0 stands for not reported."""
    if call.usage is None:
        return {}
    tokens = {
        "gen_ai.usage.input_tokens": call.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": call.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": call.usage.prompt_tokens_details.cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": call.usage.completion_tokens_details.reasoning_tokens,
    }
    return {name: count for name, count in tokens.items() if count > 0}
