"""core/errors.py: the limit that each refusal names."""

from chatrpc_server.core.errors import Exhausted, Overloaded, Reason


def test_refusals_name_their_limit() -> None:
    errors = [Overloaded("full"), Overloaded("full", limit="bytes"), Exhausted("no descriptor is left")]
    assert [error.limit for error in errors] == ["in_flight", "bytes", "descriptors"]
    assert {(error.reason, error.retry_after_seconds) for error in errors} == {(Reason.IN_FLIGHT_LIMIT, 1.0)}
