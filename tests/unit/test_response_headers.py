"""Request ids and rate limits by their many names."""

import pytest

from chatrpc_server.core.openai import response_headers as subject


@pytest.mark.parametrize("name", subject.REQUEST_IDS)
def test_each_name_of_a_request_id(name: str) -> None:
    assert subject.request_id({"date": "x", name: "id-1"}) == "id-1"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, ""),
        ({"x-request-id": ""}, ""),
        ({"cf-ray": "ray", "apim-request-id": "azure"}, "azure"),
        ({"cf-ray": "ray", "request-id": ""}, "ray"),
        ({"x-request-id": "secret", "request-id": "shown"}, "shown"),
        ({"x-request-id": "secret"}, ""),
    ],
)
def test_the_first_id_that_can_be_shown(headers: dict[str, str], expected: str) -> None:
    assert subject.request_id(headers, lambda value: value != "secret") == expected


@pytest.mark.parametrize(
    ("name", "is_limit"),
    [
        ("x-ratelimit-remaining-requests", True),
        ("x-ratelimit-limit-tokens-minute", True),
        ("x-rate-limit-reset", True),
        ("anthropic-ratelimit-input-tokens-remaining", True),
        ("ratelimit", True),
        ("ratelimit-policy", True),
        ("ratelimit-remaining", True),
        ("ratelimitbysize-limit", True),
        ("x-ratelimitbysize-remaining-minute", True),
        ("x-ratelimit-a-bin", False),
        ("ratelimit-", False),
        ("x-ratelimit-foo!bar", False),
        ("x-ratelimit-" + "x" * 51, False),
        ("x-other-ratelimit-a", False),
        ("retry-after", False),
        ("set-cookie", False),
    ],
)
def test_names_of_rate_limits(name: str, is_limit: bool) -> None:
    assert list(subject.rate_limits({name: "1", "date": "x"}, bool)) == ([(name, "1")] if is_limit else [])
    assert not list(subject.rate_limits({name: "1"}, lambda _: False))


def test_what_remains_is_a_rate_limit() -> None:
    headers = dict.fromkeys(subject.REMAINING, "1")
    assert dict(subject.rate_limits(headers, bool)) == headers
    assert set(subject.REMAINING.values()) == {"requests", "tokens"}
