"""The budget for messages in memory, and the calls that take from it."""

import pytest

from chatrpc_server.core.budget import UNLIMITED, ByteBudget
from chatrpc_server.core.call import Call
from chatrpc_server.core.errors import Overloaded


def test_messages_within_the_limit_fit() -> None:
    budget = ByteBudget(100)
    budget.take(60)
    budget.take(40)
    assert (budget.used_bytes, budget.free_bytes) == (100, 0)
    budget.give(60)
    assert (budget.used_bytes, budget.free_bytes) == (40, 60)


def test_a_message_beyond_the_limit_is_rejected_and_not_counted() -> None:
    budget = ByteBudget(100)
    budget.take(60)
    with pytest.raises(Overloaded) as rejected:
        budget.take(41)
    assert rejected.value.message == (
        "this message of 41 bytes and the 60 bytes in flight exceed limits.max_bytes_in_flight, which is 100;"
        " retry later"
    )
    assert (rejected.value.limit, rejected.value.retry_after_seconds) == ("bytes", 1.0)
    assert budget.used_bytes == 60


def test_a_call_remembers_its_share() -> None:
    call = Call("id", "CreateChatCompletion", started=1.0, deadline=60.0)
    assert call.budget is UNLIMITED
    call.budget = budget = ByteBudget(100)
    call.hold(30)
    call.hold(30)
    with pytest.raises(Overloaded):
        call.hold(41)
    assert call.held_bytes == budget.used_bytes == 60
    call.release(20)
    assert call.held_bytes == budget.used_bytes == 40
