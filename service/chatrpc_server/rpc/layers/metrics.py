"""Layer: counts and times every call exactly once, with any outcome."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from chatrpc_server.core.call import Call
from chatrpc_server.core.errors import Reason
from chatrpc_server.rpc.pipeline import SERVICE, Context
from chatrpc_server.telemetry.labels import FINISH_REASONS, GRPC_CODES, OTHER, UNKNOWN_RPC
from chatrpc_server.telemetry.metrics import Metrics

RPCS = (
    ("unary", SERVICE, "CreateChatCompletion"),
    ("server_stream", SERVICE, "CreateChatCompletionStream"),
)
"""Type, service and method, as go-grpc-middleware labels them."""
_RPC_OF_METHOD = {rpc[-1]: rpc for rpc in RPCS}
_ROUNDED_UP = 0.01
"""gRPC's core sends a timeout with three digits, rounded up: 30 s can arrive as 30.1 s, 10 s as 10.1 s."""

CODE_NAMES = {code: GRPC_CODES[code.value[0]] for code in grpc.StatusCode}


class CallMetrics:
    """The layer that records metrics of calls."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @asynccontextmanager
    async def __call__(self, call: Call, context: Context) -> AsyncIterator[None]:
        """Record the call; raise no error of its own."""
        metrics, child = self._metrics, self._metrics.child
        rpc = _RPC_OF_METHOD[call.method]
        child(metrics.started, *rpc).inc()
        if call.timeout_seconds is None:
            child(metrics.timeout_missing, call.method).inc()
        else:
            # Remove gRPC's rounding, which would move usual timeouts such as 30 s into the next bucket.
            child(metrics.timeout, call.method).observe(call.timeout_seconds / (1 + _ROUNDED_UP))
        in_flight = child(metrics.in_flight, call.method)
        in_flight.inc()
        code = grpc.StatusCode.OK
        try:
            yield
        except BaseException:
            code = final_code(call, context)
            raise
        finally:
            in_flight.dec()
            call.code = CODE_NAMES[code]
            self._record(call, code)

    def unknown(self) -> None:
        """Count an RPC that the service does not implement."""
        self._metrics.child(self._metrics.started, *UNKNOWN_RPC).inc()
        self._metrics.child(self._metrics.handled, *UNKNOWN_RPC, "Unimplemented").inc()

    def _record(self, call: Call, code: grpc.StatusCode) -> None:
        metrics, child = self._metrics, self._metrics.child
        rpc = _RPC_OF_METHOD[call.method]
        seconds = time.monotonic() - call.started
        exemplar = {"trace_id": call.trace_id} if call.sampled else None
        child(metrics.handled, *rpc, call.code).inc()
        child(metrics.handling, *rpc).observe(seconds, exemplar)
        child(metrics.received, *rpc).inc(call.messages_received)
        child(metrics.sent, *rpc).inc(call.messages_sent)
        child(metrics.overhead, call.method).observe(call.overhead_seconds(seconds), exemplar)

        streaming = rpc[0] == "server_stream"
        gen_ai = metrics.gen_ai_labels(call.upstream.provider, call.model)
        model = gen_ai[-1]
        error_type = "" if code is grpc.StatusCode.OK else call.reason or code.name
        stream = "true" if streaming else "false"
        child(metrics.duration, *gen_ai, call.upstream.name, error_type, stream).observe(seconds, exemplar)
        if streaming:
            child(metrics.streams_ended, stream_outcome(call, code)).inc()
            child(metrics.chunks, model).inc(call.chunks)
            child(metrics.stream_bytes, model).inc(call.bytes_sent)
            if call.first_message_at is not None:
                metrics.writing.observe(call.writing_seconds)
                first_seconds = call.first_message_at - call.started
                child(metrics.first_chunk, *gen_ai, call.upstream.name).observe(first_seconds, exemplar)
        for reason in list(call.finish_reasons.values()):  # a copy, because a thread can still work for the call
            if reason:
                child(metrics.finish_reasons, model, reason if reason in FINISH_REASONS else OTHER).inc()
        self._count_tokens(call, gen_ai, stream, abandoned=_is_abandoned(call, code))

    def _count_tokens(self, call: Call, gen_ai: tuple[str, str, str], stream: str, *, abandoned: bool) -> None:
        metrics, child = self._metrics, self._metrics.child
        model = gen_ai[-1]
        if abandoned:
            child(metrics.abandoned_chunks, model).inc(call.chunks)
        usage = call.usage
        if usage is None:
            if call.messages_sent:
                child(metrics.usage_missing, call.upstream.name, stream).inc()
            return
        for kind, tokens in (
            ("input", usage.prompt_tokens),
            ("output", usage.completion_tokens),
            ("cached_input", usage.prompt_tokens_details.cached_tokens),
            ("reasoning", usage.completion_tokens_details.reasoning_tokens),
        ):
            if tokens > 0:
                child(metrics.token_usage, *gen_ai, kind).observe(tokens)
                child(metrics.tokens, model, kind).inc(tokens)
                if abandoned:
                    child(metrics.abandoned_tokens, model, kind).inc(tokens)


def final_code(call: Call, context: Context) -> grpc.StatusCode:
    """Return the code of a failed RPC: the code that an abort has set, else CANCELLED or DEADLINE_EXCEEDED."""
    code: Any = context.code()
    if code:
        return code if isinstance(code, grpc.StatusCode) else next(c for c in grpc.StatusCode if c.value[0] == code)
    remaining = context.time_remaining()
    if remaining is None:
        return grpc.StatusCode.CANCELLED
    # The rounding makes the caller's deadline expire before the service's.
    total = remaining + time.monotonic() - call.started
    timed_out = remaining <= 0.005 + _ROUNDED_UP * total
    return grpc.StatusCode.DEADLINE_EXCEEDED if timed_out else grpc.StatusCode.CANCELLED


def stream_outcome(call: Call, code: grpc.StatusCode) -> str:
    """Return the label `outcome` of `chatrpc_streams_ended_total`."""
    match code, call.reason:
        case grpc.StatusCode.OK, _:
            return "complete"
        case grpc.StatusCode.CANCELLED, _:
            return "client_cancel"
        case _, Reason.UPSTREAM_TRUNCATED:
            return "upstream_truncated"
        case _, Reason.UPSTREAM_TIMEOUT if not _is_error_status(call):
            return "idle_timeout"
        case _, reason if reason.startswith("UPSTREAM_"):
            return "upstream_error"
        case _, Reason.SERVER_DRAINING:
            return "drain"
        case grpc.StatusCode.DEADLINE_EXCEEDED, _:
            return "deadline"
        case _, Reason.IN_FLIGHT_LIMIT | Reason.INVALID_REQUEST:
            return "rejected"
        case _:
            return "service_error"


def _is_error_status(call: Call) -> bool:
    """Return whether the newest response had an error status, such as the upstream's own 408 or 504."""
    attempt = call.last_attempt
    return attempt is not None and attempt.status is not None and attempt.status >= 400


def _is_abandoned(call: Call, code: grpc.StatusCode) -> bool:
    """Return whether the caller cancelled, or its deadline expired."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return not call.reason.startswith("UPSTREAM_")  # a timeout of the upstream
    return code is grpc.StatusCode.CANCELLED
