"""Which errors are retried, and after which delay. Chance is an argument, so the tests wait for nothing."""

from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc.v1.chat_error_pb2 import UpstreamError
from chatrpc_server.core.backoff import Backoff, is_transient
from chatrpc_server.core.errors import (
    ChatError,
    DeadlineExceeded,
    Draining,
    ErrorResponse,
    InvalidRequest,
    InvalidResponse,
    Overloaded,
    Reason,
    TimedOut,
    Truncated,
    Unreachable,
)


def rejected(status: int, reason: Reason = Reason.UPSTREAM_ERROR, **fields: object) -> ErrorResponse:
    return ErrorResponse(reason, status, UpstreamError(message="m"), **fields)  # type: ignore[arg-type]


ERRORS: dict[str, tuple[ChatError, bool]] = {
    **{str(status): (rejected(status), False) for status in (400, 401, 402, 403, 404, 405, 413, 415, 422)},
    **{
        str(status): (rejected(status), True)
        for status in (408, 409, 425, 429, 498, 499, 500, 501, 502, 503, 504, 520, 529)
    },
    "rate limit": (rejected(429, Reason.UPSTREAM_RATE_LIMITED), True),
    "quota": (rejected(429, Reason.UPSTREAM_QUOTA_EXHAUSTED), False),
    "quota, although the upstream requests a retry": (
        rejected(429, Reason.UPSTREAM_QUOTA_EXHAUSTED, should_retry=True, retry_after_seconds=1.0),
        False,
    ),
    "a rate limit with another status": (rejected(400, Reason.UPSTREAM_RATE_LIMITED), True),
    "an overload with another status": (rejected(403, Reason.UPSTREAM_OVERLOADED), True),
    "the context with another status": (rejected(500, Reason.UPSTREAM_CONTEXT_LENGTH_EXCEEDED), False),
    "the model with another status": (rejected(503, Reason.UPSTREAM_MODEL_NOT_FOUND), False),
    "the key with another status": (rejected(429, Reason.UPSTREAM_UNAUTHENTICATED), False),
    "the upstream says yes": (rejected(400, should_retry=True), True),
    "the upstream says no": (rejected(503, should_retry=False), False),
    "in a 200": (rejected(503, in_success=True), True),
    "in a 200, the caller's fault": (rejected(400, in_success=True), False),
    "unreachable": (Unreachable("m"), True),
    "unreachable for lack of a right": (Unreachable("m", is_transient=False), False),
    "silence": (TimedOut("m"), False),
    "not a completion": (InvalidResponse("m", "bad_json"), False),
    "empty": (InvalidResponse("m", "bad_json", is_transient=True), True),
    "cut": (Truncated("m"), True),
    "the caller's": (InvalidRequest("f", "d"), False),
    "deadline": (DeadlineExceeded("m"), False),
    "ours, full": (Overloaded("m", retry_after_seconds=1.0), False),
    "ours, stopping": (Draining("m"), False),
    "ours": (ChatError("m"), False),
}


@pytest.mark.parametrize(("error", "transient"), ERRORS.values(), ids=ERRORS)
def test_which_errors_are_retried(error: ChatError, transient: bool) -> None:
    assert is_transient(error) is transient
    assert (Backoff(2, 0.5, 8.0, 30.0).delay_seconds(error, 0, 0.5) is not None) is transient


DELAYS = {
    # error, retries so far, chance: delay
    "first": (rejected(503), 0, 1.0, 0.5),
    "second": (rejected(503), 1, 1.0, 1.0),
    "fifth": (rejected(503), 4, 1.0, 8.0),
    "no more than the maximum": (rejected(503), 8, 1.0, 8.0),
    "half a chance": (rejected(503), 1, 0.5, 0.5),
    "no luck": (Unreachable("m"), 3, 0.0, 0.0),
    "the last": (rejected(503), 9, 1.0, 8.0),
    "one too many": (rejected(503), 10, 1.0, None),
    "as the upstream requests": (rejected(429, retry_after_seconds=30.0), 0, 0.5, 30.0),
    "longer than its limit": (rejected(429, retry_after_seconds=30.001), 0, 0.5, None),
    "longer than any time": (rejected(503, retry_after_seconds=1e9), 0, 0.5, None),
    "longer than its limit, although the upstream requests a retry": (
        rejected(503, should_retry=True, retry_after_seconds=31.0),
        0,
        0.5,
        None,
    ),
    "at once, as the upstream requests": (rejected(429, retry_after_seconds=0.0), 3, 0.5, 0.0),
    "as the upstream requests, but one too many": (rejected(429, retry_after_seconds=1.0), 10, 0.5, None),
}


@pytest.mark.parametrize(("error", "retries", "chance", "expected"), DELAYS.values(), ids=DELAYS)
def test_delay(error: ChatError, retries: int, chance: float, expected: float | None) -> None:
    assert Backoff(10, 0.5, 8.0, 30.0).delay_seconds(error, retries, chance) == expected


@pytest.mark.parametrize(("max_retries", "expected"), [(0, []), (1, [0.5]), (2, [0.5, 1.0])])
def test_number_of_retries(max_retries: int, expected: list[float]) -> None:
    delays = (
        Backoff(max_retries, 0.5, 8.0, 30.0).delay_seconds(Unreachable("m"), retries, 1.0) for retries in range(9)
    )
    assert list(takewhile(lambda delay: delay is not None, delays)) == expected


@given(st.integers(0, 20), st.floats(0, 1), st.floats(0.001, 60), st.floats(0.001, 60))
def test_delays_are_bounded(retries: int, chance: float, initial: float, most: float) -> None:
    delay = Backoff(21, initial, most, 30.0).delay_seconds(rejected(500), retries, chance)
    assert delay is not None
    assert 0 <= delay <= most
    assert delay <= initial * 2**retries
