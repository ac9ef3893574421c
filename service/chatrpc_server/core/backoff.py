"""Retry decision: which errors are retried, and after which delay. Pure: the random number is an argument."""

from dataclasses import dataclass

from chatrpc_server.core.errors import ChatError, ErrorResponse, InvalidResponse, Reason, Truncated, Unreachable

_RETRIED_STATUSES = {408, 409, 429}


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
        return error.status in _RETRIED_STATUSES or error.status >= 500
    if isinstance(error, Truncated):
        return True  # nothing was delivered, because no retry follows the first chunk
    return isinstance(error, Unreachable | InvalidResponse) and error.is_transient
