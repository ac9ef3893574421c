"""May this be tried again, and after how long? Pure: the chance comes in as an argument."""

from dataclasses import dataclass

from chatrpc_server.core.errors import ChatError, ErrorResponse, Reason, Unreachable

_RETRIED_STATUSES = {408, 409, 429}


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential with full jitter, as the OpenAI SDKs retry."""

    max_retries: int = 2
    initial_seconds: float = 0.5
    max_seconds: float = 8.0

    def delay_seconds(self, error: ChatError, retries: int, chance: float) -> float | None:
        """How long to wait before the next try, or None to give up.

        `retries`: how many there have been. `chance`: uniform in [0, 1). What the upstream asks for goes first.
        """
        if retries >= self.max_retries or not is_transient(error):
            return None
        if error.retry_after_seconds is not None:
            return error.retry_after_seconds
        return chance * min(self.max_seconds, self.initial_seconds * 2.0**retries)


def is_transient(error: ChatError) -> bool:
    """Could the very same request succeed a moment later?"""
    if isinstance(error, ErrorResponse):
        if error.reason is Reason.UPSTREAM_QUOTA_EXHAUSTED:
            return False
        if error.should_retry is not None:
            return error.should_retry
        return error.status in _RETRIED_STATUSES or error.status >= 500
    return isinstance(error, Unreachable)
