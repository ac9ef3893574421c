"""Layer: counts and times every call exactly once, whatever its end, and writes its access line."""

import logging
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

log = logging.getLogger("chatrpc.access")

RPCS = (
    ("unary", SERVICE, "CreateChatCompletion"),
    ("server_stream", SERVICE, "CreateChatCompletionStream"),
)
"""Type, service and method, as go-grpc-middleware labels them."""
_RPC = {rpc[-1]: rpc for rpc in RPCS}
_MODEL_CHARACTERS = 100
_ROUNDED_UP = 0.01
"""grpc's core sends a timeout with three digits, rounded up: 30 s may arrive as 30.1 s, 10 s as 10.1 s."""

CODE_NAMES = {code: GRPC_CODES[code.value[0]] for code in grpc.StatusCode}


class CallMetrics:
    """Writes the metrics of calls to the given upstream."""

    def __init__(self, metrics: Metrics, upstream: str) -> None:
        self._metrics = metrics
        self._upstream = upstream

    @asynccontextmanager
    async def __call__(self, call: Call, context: Context) -> AsyncIterator[None]:
        """Observes the call; raises nothing of its own."""
        metrics, child = self._metrics, self._metrics.child
        rpc = _RPC[call.method]
        child(metrics.started, *rpc).inc()
        child(metrics.received, *rpc).inc()
        if call.timeout_seconds is None:
            child(metrics.timeout_missing, call.method).inc()
        else:
            # What the way has added would put the round figures that callers choose into the next bucket.
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
            self._ended(call, code)

    def unknown(self) -> None:
        """Counts an RPC that nobody serves."""
        self._metrics.child(self._metrics.started, *UNKNOWN_RPC).inc()
        self._metrics.child(self._metrics.handled, *UNKNOWN_RPC, "Unimplemented").inc()

    def _ended(self, call: Call, code: grpc.StatusCode) -> None:
        metrics, child = self._metrics, self._metrics.child
        rpc = _RPC[call.method]
        seconds = time.monotonic() - call.started
        exemplar = {"trace_id": call.trace_id} if call.sampled else None
        child(metrics.handled, *rpc, call.code).inc()
        child(metrics.handling, *rpc).observe(seconds, exemplar)
        child(metrics.sent, *rpc).inc(call.messages_sent)
        overhead_seconds = max(0.0, seconds - call.waiting_seconds - call.writing_seconds)
        child(metrics.overhead, call.method).observe(overhead_seconds, exemplar)

        streaming = rpc[0] == "server_stream"
        gen_ai = metrics.gen_ai_labels(call.model)
        model = gen_ai[-1]
        error_type = "" if code is grpc.StatusCode.OK else call.reason or code.name
        stream = "true" if streaming else "false"
        child(metrics.duration, *gen_ai, self._upstream, error_type, stream).observe(seconds, exemplar)
        if streaming:
            child(metrics.streams_ended, stream_end(call, code)).inc()
            child(metrics.chunks, model).inc(call.chunks)
            child(metrics.stream_bytes, model).inc(call.bytes_sent)
            if call.first_message_at is not None:
                metrics.writing.observe(call.writing_seconds)
                first_seconds = call.first_message_at - call.started
                child(metrics.first_chunk, *gen_ai, self._upstream).observe(first_seconds, exemplar)
        for reason in call.finish_reasons.values():
            if reason:
                child(metrics.finish_reasons, model, reason if reason in FINISH_REASONS else OTHER).inc()
        self._count_tokens(call, gen_ai, stream, abandoned=_caller_has_gone(call, code))
        _access_line(call, self._upstream, seconds, overhead_seconds)

    def _count_tokens(self, call: Call, gen_ai: tuple[str, str, str], stream: str, *, abandoned: bool) -> None:
        metrics, child = self._metrics, self._metrics.child
        model = gen_ai[-1]
        if abandoned:
            child(metrics.abandoned_chunks, model).inc(call.chunks)
        usage = call.usage
        if usage is None:
            if call.messages_sent:
                child(metrics.usage_missing, self._upstream, stream).inc()
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
    """The code of an RPC that ends with an exception: an abort has set it, else the caller has gone or timed out."""
    code: Any = context.code()
    if code:
        return code if isinstance(code, grpc.StatusCode) else next(c for c in grpc.StatusCode if c.value[0] == code)
    remaining = context.time_remaining()
    if remaining is None:
        return grpc.StatusCode.CANCELLED
    # A caller's own clock ends its call a little before ours does.
    total = remaining + time.monotonic() - call.started
    timed_out = remaining <= 0.005 + _ROUNDED_UP * total
    return grpc.StatusCode.DEADLINE_EXCEEDED if timed_out else grpc.StatusCode.CANCELLED


def stream_end(call: Call, code: grpc.StatusCode) -> str:
    """How a stream ended, in the words of `chatrpc_streams_ended_total`."""
    match code, call.reason:
        case grpc.StatusCode.OK, _:
            return "complete"
        case grpc.StatusCode.CANCELLED, _:
            return "client_cancel"
        case _, Reason.UPSTREAM_TRUNCATED:
            return "upstream_truncated"
        case _, Reason.UPSTREAM_TIMEOUT:
            return "idle_timeout"
        case _, Reason.SERVER_DRAINING:
            return "drain"
        case grpc.StatusCode.DEADLINE_EXCEEDED, _:
            return "deadline"
        case _, Reason.INTERNAL | Reason.RESPONSE_TOO_LARGE:
            return "service_error"
        case _, Reason.IN_FLIGHT_LIMIT:
            return "rejected"
        case _:
            return "upstream_error"


def _caller_has_gone(call: Call, code: grpc.StatusCode) -> bool:
    """Did the caller cancel, or its deadline pass?"""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return call.reason != Reason.UPSTREAM_TIMEOUT
    return code is grpc.StatusCode.CANCELLED


def _access_line(call: Call, upstream: str, seconds: float, overhead_seconds: float) -> None:
    usage = call.usage
    first_seconds = None if call.first_message_at is None else call.first_message_at - call.started
    log.info(
        "call",
        extra={
            "event": "call",
            "request_id": call.id,
            "trace_id": call.trace_id or None,
            "method": call.method,
            "model": call.model[:_MODEL_CHARACTERS],
            "upstream": upstream,
            "code": call.code,
            "reason": call.reason or None,
            "duration_ms": _milliseconds(seconds),
            "first_message_ms": None if first_seconds is None else _milliseconds(first_seconds),
            "overhead_ms": _milliseconds(overhead_seconds),
            "messages": call.messages_sent,
            "attempts": call.attempts,
            "http_status": call.upstream_status,
            "input_tokens": usage.prompt_tokens if usage else None,
            "output_tokens": usage.completion_tokens if usage else None,
            "upstream_request_id": call.upstream_request_id or None,
        },
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
