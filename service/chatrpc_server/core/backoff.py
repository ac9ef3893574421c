"""Retry decision: which errors are retried, and after which delay. Pure: the random number is an argument."""

from dataclasses import dataclass

from chatrpc_server.core.errors import ChatError, ErrorResponse, InvalidResponse, Reason, Truncated, Unreachable

_RETRIED_STATUSES = {408, 409, 425, 429, 498, 499}
_PASSING = {Reason.UPSTREAM_RATE_LIMITED, Reason.UPSTREAM_OVERLOADED}
"""Reasons that pass, even beside a status that does not show it."""
_LASTING = {
    Reason.UPSTREAM_CONTEXT_LENGTH_EXCEEDED,
    Reason.UPSTREAM_CONTENT_FILTERED,
    Reason.UPSTREAM_MODERATED,
    Reason.UPSTREAM_MODEL_NOT_FOUND,
    Reason.UPSTREAM_INSUFFICIENT_BALANCE,
    Reason.UPSTREAM_UNAUTHENTICATED,
}
"""Reasons that the same request meets again, even beside a status such as 500."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter, like the OpenAI SDKs."""

    max_retries: int
    initial_seconds: float
    max_seconds: float
    max_retry_after_seconds: float
    """Longest delay of the upstream that is waited for. A longer one ends the call, so that the caller can decide."""

    def delay_seconds(self, error: ChatError, retries: int, chance: float) -> float | None:
        """Return the delay before the next attempt, or None if no retry follows.

        `retries`: number of retries so far. `chance`: uniform in [0, 1). The upstream's own delay has precedence.
        """
        if retries >= self.max_retries or not is_transient(error):
            return None
        if error.retry_after_seconds is not None:
            return error.retry_after_seconds if error.retry_after_seconds <= self.max_retry_after_seconds else None
        return chance * min(self.max_seconds, self.initial_seconds * 2.0**retries)


def is_transient(error: ChatError) -> bool:
    """Return whether the same request can succeed later."""
    if isinstance(error, ErrorResponse):
        if error.reason is Reason.UPSTREAM_QUOTA_EXHAUSTED:
            return False
        if error.should_retry is not None:
            return error.should_retry
        if error.reason in _PASSING or error.reason in _LASTING:
            return error.reason in _PASSING
        return error.status in _RETRIED_STATUSES or error.status >= 500
    if isinstance(error, Truncated):
        return True  # nothing was delivered, because no retry follows the first chunk
    return isinstance(error, Unreachable | InvalidResponse) and error.is_transient
