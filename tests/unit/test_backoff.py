"""What is tried again, and after how long. Chance is an argument, so there is nothing to wait for."""

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


def refused(status: int, reason: Reason = Reason.UPSTREAM_ERROR, **fields: object) -> ErrorResponse:
    return ErrorResponse(reason, status, UpstreamError(message="m"), **fields)  # type: ignore[arg-type]


ERRORS: dict[str, tuple[ChatError, bool]] = {
    **{str(status): (refused(status), False) for status in (400, 401, 402, 403, 404, 405, 413, 415, 422, 499)},
    **{str(status): (refused(status), True) for status in (408, 409, 429, 500, 501, 502, 503, 504, 520, 529)},
    "rate limit": (refused(429, Reason.UPSTREAM_RATE_LIMITED), True),
    "quota": (refused(429, Reason.UPSTREAM_QUOTA_EXHAUSTED), False),
    "quota, whatever the upstream asks for": (
        refused(429, Reason.UPSTREAM_QUOTA_EXHAUSTED, should_retry=True, retry_after_seconds=1.0),
        False,
    ),
    "the upstream says yes": (refused(400, should_retry=True), True),
    "the upstream says no": (refused(503, should_retry=False), False),
    "in a 200": (refused(503, in_success=True), True),
    "in a 200, the caller's fault": (refused(400, in_success=True), False),
    "unreachable": (Unreachable("m"), True),
    "silence": (TimedOut("m"), False),
    "not a completion": (InvalidResponse("m", "bad_json"), False),
    "cut": (Truncated("m"), False),
    "the caller's": (InvalidRequest("f", "d"), False),
    "deadline": (DeadlineExceeded("m"), False),
    "ours, full": (Overloaded("m", retry_after_seconds=1.0), False),
    "ours, stopping": (Draining("m"), False),
    "ours": (ChatError("m"), False),
}


@pytest.mark.parametrize(("error", "transient"), ERRORS.values(), ids=ERRORS)
def test_what_is_tried_again(error: ChatError, transient: bool) -> None:
    assert is_transient(error) is transient
    assert (Backoff().delay_seconds(error, 0, 0.5) is not None) is transient


DELAYS = {
    # error, retries so far, chance: delay
    "first": (refused(503), 0, 1.0, 0.5),
    "second": (refused(503), 1, 1.0, 1.0),
    "fifth": (refused(503), 4, 1.0, 8.0),
    "no more than the most": (refused(503), 8, 1.0, 8.0),
    "half a chance": (refused(503), 1, 0.5, 0.5),
    "no luck": (Unreachable("m"), 3, 0.0, 0.0),
    "the last": (refused(503), 9, 1.0, 8.0),
    "one too many": (refused(503), 10, 1.0, None),
    "as the upstream asks": (refused(429, retry_after_seconds=30.0), 0, 0.5, 30.0),
    "at once, as the upstream asks": (refused(429, retry_after_seconds=0.0), 3, 0.5, 0.0),
    "as the upstream asks, but one too many": (refused(429, retry_after_seconds=1.0), 10, 0.5, None),
}


@pytest.mark.parametrize(("error", "retries", "chance", "expected"), DELAYS.values(), ids=DELAYS)
def test_delay(error: ChatError, retries: int, chance: float, expected: float | None) -> None:
    assert Backoff(max_retries=10).delay_seconds(error, retries, chance) == expected


@pytest.mark.parametrize(("max_retries", "expected"), [(0, []), (1, [0.5]), (2, [0.5, 1.0])])
def test_how_often(max_retries: int, expected: list[float]) -> None:
    delays = (Backoff(max_retries).delay_seconds(Unreachable("m"), retries, 1.0) for retries in range(9))
    assert list(takewhile(lambda delay: delay is not None, delays)) == expected


@given(st.integers(0, 20), st.floats(0, 1), st.floats(0.001, 60), st.floats(0.001, 60))
def test_delays_are_bounded(retries: int, chance: float, initial: float, most: float) -> None:
    delay = Backoff(21, initial, most).delay_seconds(refused(500), retries, chance)
    assert delay is not None
    assert 0 <= delay <= most
    assert delay <= initial * 2**retries
