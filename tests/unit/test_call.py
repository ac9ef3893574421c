"""A call and its attempts: the newest attempt counts, and time elsewhere is no overhead."""

import pytest

from chatrpc_server.core.call import Call, UpstreamIdentity

FIRST, SECOND = UpstreamIdentity("first", "openai"), UpstreamIdentity("second", "openai")


def a_call() -> Call:
    return Call("id", "CreateChatCompletion", started=1.0, deadline=60.0)


def test_before_the_first_attempt() -> None:
    call = a_call()
    assert (call.attempts, call.last_attempt, call.response_metadata) == ([], None, ())


def test_the_newest_attempt_counts() -> None:
    call = a_call()
    one = call.begin_attempt(FIRST, 2.0)
    one.response_metadata = [("x-upstream-request-id", "a")]
    assert (call.upstream, call.last_attempt, call.response_metadata) == (FIRST, one, one.response_metadata)
    two = call.begin_attempt(SECOND, 3.0)
    assert (call.upstream, call.last_attempt, call.response_metadata) == (SECOND, two, ())
    assert [(attempt.upstream, attempt.started, attempt.status) for attempt in call.attempts] == [
        (FIRST, 2.0, None),
        (SECOND, 3.0, None),
    ]


@pytest.mark.parametrize(
    ("seconds", "receiving", "waiting", "writing", "overhead"),
    [(5.0, 0.0, 0.0, 0.0, 5.0), (6.0, 1.0, 3.0, 1.5, 0.5), (5.0, 0.0, 4.0, 2.0, 0.0)],
    ids=["all", "the rest", "never negative"],
)
def test_overhead(seconds: float, receiving: float, waiting: float, writing: float, overhead: float) -> None:
    call = a_call()
    call.receiving_seconds, call.waiting_seconds, call.writing_seconds = receiving, waiting, writing
    assert call.overhead_seconds(seconds) == overhead
