"""Layer: writes one log line per call, its access line.

It is a warning if the call failed by a fault of the service or the upstream.
"""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chatrpc_server.core.call import Call
from chatrpc_server.rpc.layers.errors import CALLERS_REASONS
from chatrpc_server.rpc.pipeline import Context

log = logging.getLogger("chatrpc.access")

_MODEL_CHARACTERS = 100
_CALLERS_KEY = "Unauthenticated"
"""The code of calls whose own upstream key is missing or rejected."""
_CALLERS_CODES = frozenset({"OK", "Canceled", "DeadlineExceeded"})
"""Codes of calls without a reason that succeeded, or that the caller or its deadline ended."""


class AccessLog:
    """The layer that logs calls."""

    @asynccontextmanager
    async def __call__(self, call: Call, context: Context) -> AsyncIterator[None]:
        """Log the call after the layers inside have set its status."""
        try:
            yield
        finally:
            _write(call, time.monotonic() - call.started)


def _write(call: Call, seconds: float) -> None:
    usage, attempt = call.usage, call.last_attempt
    first_seconds = None if call.first_message_at is None else call.first_message_at - call.started
    reason = call.mapped_reason or call.reason
    is_callers = reason in CALLERS_REASONS if reason else call.code in _CALLERS_CODES
    is_callers = is_callers or call.code == _CALLERS_KEY
    log.log(
        logging.INFO if is_callers else logging.WARNING,
        "call",
        extra={
            "event": "call",
            "request_id": call.id,
            "trace_id": call.trace_id or None,
            "method": call.method,
            "model": call.model[:_MODEL_CHARACTERS],
            "upstream": call.upstream.name,
            "code": call.code,
            "reason": call.reason or None,
            "mapped_reason": call.mapped_reason or None,
            "duration_ms": _milliseconds(seconds),
            "first_message_ms": None if first_seconds is None else _milliseconds(first_seconds),
            "overhead_ms": _milliseconds(call.overhead_seconds(seconds)),
            "messages": call.messages_sent,
            "attempts": len(call.attempts),
            "http_status": attempt.status if attempt else None,
            "input_tokens": usage.prompt_tokens if usage else None,
            "output_tokens": usage.completion_tokens if usage else None,
            "upstream_request_id": attempt.request_id or None if attempt else None,
        },
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
