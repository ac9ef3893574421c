"""What is seen of each HTTP request to the upstream: its status, its times, what it says of rate limits."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from chatrpc_server.core.call import Call, Headers
from chatrpc_server.core.errors import ChatError, ErrorResponse, InvalidResponse, Truncated
from chatrpc_server.telemetry.labels import HTTP_STATUSES, NO_CODE, OTHER
from chatrpc_server.telemetry.metrics import Metrics

_LIMITS = {f"x-ratelimit-remaining-{kind}": kind for kind in ("requests", "tokens")}
_GAPS_AT_ONCE = 16
"""Told one by one they make a paced chunk 3 % dearer at 50 streams, 7 % at 200: each finds cold caches."""


class AttemptMetrics:
    """Writes the metrics of the requests to one upstream."""

    def __init__(self, metrics: Metrics, upstream: str) -> None:
        self._metrics = metrics
        self._upstream = upstream

    @contextmanager
    def request(self, call: Call) -> Iterator[Headers]:
        """Around a request, until its response is closed; gives the headers that it takes along."""
        started, cancelled = time.monotonic(), False
        try:
            yield call.forward
        except (asyncio.CancelledError, GeneratorExit):
            cancelled = True
            raise
        except (InvalidResponse, Truncated) as error:
            kind = error.kind if isinstance(error, InvalidResponse) else "missing_done"
            self._metrics.child(self._metrics.protocol_errors, self._upstream, kind).inc()
            raise
        finally:
            self._ended(call, time.monotonic() - started, cancelled)

    @contextmanager
    def gaps(self, call: Call) -> Iterator[Callable[[float], None]]:
        """Around a stream; gives what is told the wait for each delivery after the first, in seconds."""
        metrics = self._metrics
        observe = metrics.child(metrics.chunk_gap, *metrics.gen_ai_labels(call.model)).observe
        waits: list[float] = []

        def note(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == _GAPS_AT_ONCE:
                tell()

        def tell() -> None:
            for seconds in waits:
                observe(seconds)
            waits.clear()

        try:
            yield note
        finally:
            tell()

    def retried(self, error: ChatError) -> None:
        """Counts the retry that follows this error."""
        code = _code(error.status) if isinstance(error, ErrorResponse) else NO_CODE
        outcome = "response" if code else "no_response"
        self._metrics.child(self._metrics.retries, self._upstream, code, outcome).inc()

    def _ended(self, call: Call, seconds: float, cancelled: bool) -> None:
        metrics, child = self._metrics, self._metrics.child
        attempt = "first" if call.attempts == 1 else "retry"
        code = _code(call.upstream_status)
        outcome = "response" if code else "cancelled" if cancelled else "no_response"
        child(metrics.upstream_requests, self._upstream, code, outcome, attempt).inc()
        if call.upstream_status is None:
            return
        child(metrics.upstream_seconds, self._upstream, "headers").observe(call.upstream_seconds)
        child(metrics.upstream_seconds, self._upstream, "body").observe(seconds - call.upstream_seconds)
        for name, value in call.response_metadata:
            if (kind := _LIMITS.get(name)) and value.isdecimal():
                child(metrics.rate_limit_remaining, self._upstream, kind).set(int(value))


def _code(status: int | None) -> str:
    if status is None:
        return NO_CODE
    code = str(status)
    return code if code in HTTP_STATUSES else OTHER
