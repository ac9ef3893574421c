"""Layer: counts and times every call exactly once, whatever its end, and writes its access line."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from chatrpc_server.core.call import Call
from chatrpc_server.core.errors import Reason
from chatrpc_server.metrics import Metrics
from chatrpc_server.rpc.pipeline import SERVICE, Context
from chatrpc_server.settings import UpstreamSettings

log = logging.getLogger("chatrpc.access")

_OPERATION = "chat"
_MODEL_CHARACTERS = 100

# As go-grpc-middleware spells them, on which dashboards are built.
CODE_NAMES = {
    code: "OK" if code is grpc.StatusCode.OK else "".join(word.capitalize() for word in code.name.split("_"))
    for code in grpc.StatusCode
} | {grpc.StatusCode.CANCELLED: "Canceled"}


class Observe:
    """Writes the metrics of calls to the given upstream."""

    def __init__(self, metrics: Metrics, upstream: UpstreamSettings) -> None:
        self._metrics = metrics
        self._provider = upstream.provider
        self._upstream = upstream.name

    @asynccontextmanager
    async def __call__(self, call: Call, context: Context) -> AsyncIterator[None]:
        """Observes the call; raises nothing of its own."""
        streaming = call.method.endswith("Stream")
        rpc = ("server_stream" if streaming else "unary", SERVICE, call.method)
        metrics = self._metrics
        metrics.started.labels(*rpc).inc()
        metrics.received.labels(*rpc).inc()
        in_flight = metrics.in_flight.labels(call.method)
        in_flight.inc()
        code = grpc.StatusCode.OK
        try:
            yield
        except BaseException:
            code = final_code(call, context)
            raise
        finally:
            in_flight.dec()
            seconds = time.monotonic() - call.started
            metrics.handled.labels(*rpc, CODE_NAMES[code]).inc()
            metrics.handling.labels(*rpc).observe(seconds)
            metrics.sent.labels(*rpc).inc(call.messages_sent)
            self._operation(call, code, seconds, streaming)
            self._tokens(call, streaming)
            _access_line(call, code, seconds)

    def _operation(self, call: Call, code: grpc.StatusCode, seconds: float, streaming: bool) -> None:
        metrics, gen_ai = self._metrics, self._gen_ai(call)
        error_type = "" if code is grpc.StatusCode.OK else call.reason or code.name
        metrics.duration.labels(*gen_ai, self._upstream, error_type, str(streaming).lower()).observe(seconds)
        if streaming:
            metrics.streams_ended.labels(stream_end(call, code)).inc()
            if call.first_message_at is not None:
                metrics.first_chunk.labels(*gen_ai, self._upstream).observe(call.first_message_at - call.started)

    def _tokens(self, call: Call, streaming: bool) -> None:
        usage, metrics = call.usage, self._metrics
        if usage is None:
            if call.messages_sent:
                metrics.usage_missing.labels(self._upstream, str(streaming).lower()).inc()
            return
        gen_ai = self._gen_ai(call)
        for kind, tokens in (
            ("input", usage.prompt_tokens),
            ("output", usage.completion_tokens),
            ("cached_input", usage.prompt_tokens_details.cached_tokens),
            ("reasoning", usage.completion_tokens_details.reasoning_tokens),
        ):
            if tokens > 0:
                metrics.token_usage.labels(*gen_ai, kind).observe(tokens)
                metrics.tokens.labels(gen_ai[-1], kind).inc(tokens)

    def _gen_ai(self, call: Call) -> tuple[str, str, str]:
        return _OPERATION, self._provider, self._metrics.model_label(call.model)


def final_code(call: Call, context: Context) -> grpc.StatusCode:
    """The code of an RPC that ends with an exception: an abort has set it, else the caller has gone or timed out."""
    code: Any = context.code()
    if code:
        return code if isinstance(code, grpc.StatusCode) else next(c for c in grpc.StatusCode if c.value[0] == code)
    remaining = context.time_remaining()
    if remaining is None:
        return grpc.StatusCode.CANCELLED
    # A caller's own clock ends its call a little before ours does: grpc rounds timeouts up on the way, by 1 % at most.
    total = remaining + time.monotonic() - call.started
    timed_out = remaining <= 0.005 + 0.01 * total
    return grpc.StatusCode.DEADLINE_EXCEEDED if timed_out else grpc.StatusCode.CANCELLED


def stream_end(call: Call, code: grpc.StatusCode) -> str:
    """How a stream ended, in the words of `chatrpc_streams_ended_total`."""
    match code, call.reason:
        case grpc.StatusCode.OK, _:
            return "complete"
        case grpc.StatusCode.CANCELLED, _:
            return "client_cancel"
        case _, Reason.UPSTREAM_STREAM_TRUNCATED:
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


def _access_line(call: Call, code: grpc.StatusCode, seconds: float) -> None:
    usage = call.usage
    first = call.first_message_at
    log.info(
        "call",
        extra={
            "request_id": call.id,
            "method": call.method,
            "model": call.model[:_MODEL_CHARACTERS],
            "code": CODE_NAMES[code],
            "reason": call.reason or None,
            "duration_ms": round(seconds * 1000, 1),
            "first_message_ms": None if first is None else round((first - call.started) * 1000, 1),
            "messages": call.messages_sent,
            "attempts": call.attempts,
            "input_tokens": usage.prompt_tokens if usage else None,
            "output_tokens": usage.completion_tokens if usage else None,
            "upstream_request_id": call.upstream_request_id or None,
        },
    )
