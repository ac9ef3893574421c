"""Usage of streams: requested from every upstream that accepts it, hidden from callers that decline it."""

import json
from typing import Any

import pytest

from chatrpc.v1.chat_error_pb2 import UpstreamError
from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc.v1.chat_request_pb2 import StreamOptions
from chatrpc_server.core.errors import ErrorResponse, Reason
from chatrpc_server.core.openai import requests
from chatrpc_server.core.openai.usage import StreamUsage, UsagePolicy
from chatrpc_server.core.upstream import ChatRequest

USAGE = {"include_usage": True}


def a_request(**fields: Any) -> ChatRequest:
    return ChatRequest(messages=[ChatMessage(role="user")], **fields)


def options(include_usage: bool | None) -> StreamOptions | None:
    return None if include_usage is None else StreamOptions(include_usage=include_usage)


def error(status: int = 400, message: str = "", **fields: str) -> ErrorResponse:
    detail = UpstreamError(http_status=status, message=message, **fields)
    return ErrorResponse(Reason.UPSTREAM_INVALID_REQUEST, status, detail)


def sent(request: ChatRequest, policy: UsagePolicy) -> Any:
    return json.loads(requests.stream_body(request, policy.of_stream(request))).get("stream_options")


def a_policy(*, is_supported: bool = True) -> UsagePolicy:
    policy = UsagePolicy()
    if not is_supported:
        policy.disable("")
    return policy


@pytest.mark.parametrize(
    ("fields", "is_supported", "expected"),
    [
        pytest.param({}, True, USAGE, id="requested"),
        pytest.param({}, False, None, id="not supported"),
        pytest.param({"include_usage": True}, True, USAGE, id="the caller requests it too"),
        pytest.param({"include_usage": True}, False, USAGE, id="the caller requests it although not supported"),
        pytest.param({"include_usage": False}, True, USAGE, id="requested although the caller declines it"),
        pytest.param({"include_usage": False}, False, None, id="the upstream never gets a declining value"),
        pytest.param(
            {"include_usage": False, "include_obfuscation": False},
            False,
            {"include_obfuscation": False},
            id="other options stay",
        ),
        pytest.param({"extra_json": '{"x":1}'}, True, {"x": 1, **USAGE}, id="other keys stay"),
    ],
)
def test_body(fields: dict[str, Any], is_supported: bool, expected: Any) -> None:
    request = a_request(stream_options=StreamOptions(**fields) if fields else None)
    assert sent(request, a_policy(is_supported=is_supported)) == expected


@pytest.mark.parametrize("text", ["null", '"x"', "[]"])
def test_stream_options_of_another_type_stay(text: str) -> None:
    assert sent(a_request(extra_json='{"stream_options":' + text + "}"), UsagePolicy()) == json.loads(text)


@pytest.mark.parametrize(
    ("include_usage", "is_required", "is_declined"), [(None, False, False), (True, True, False), (False, False, True)]
)
@pytest.mark.parametrize("is_supported", [True, False])
def test_decisions(include_usage: bool | None, is_required: bool, is_declined: bool, is_supported: bool) -> None:
    request = a_request(stream_options=options(include_usage))
    assert a_policy(is_supported=is_supported).of_stream(request) == StreamUsage(
        is_requested=is_supported, is_required=is_required, is_declined=is_declined
    )


def test_options_without_usage_decline_nothing() -> None:
    request = a_request(stream_options=StreamOptions(include_obfuscation=False))
    assert not UsagePolicy().of_stream(request).is_declined


@pytest.mark.parametrize(
    ("error", "is_cause"),
    [
        pytest.param(error(param="stream_options"), True, id="param"),
        pytest.param(error(message="Unknown field: include_usage"), True, id="message"),
        pytest.param(error(422, "m", raw_body='{"loc":["body","stream_options"]}'), True, id="body"),
        pytest.param(error(message="Unknown field: stream"), False, id="something else"),
        pytest.param(error(500, param="stream_options"), False, id="another status"),
    ],
)
def test_an_error_leads_to_a_fallback(error: ErrorResponse, is_cause: bool) -> None:
    request = a_request(stream_options=options(False))
    fallback = UsagePolicy().of_stream(request).fallback(error)
    assert fallback == (StreamUsage(is_declined=True) if is_cause else None)


@pytest.mark.parametrize(
    ("include_usage", "is_supported"),
    [pytest.param(True, True, id="the caller requests usage"), pytest.param(None, False, id="not requested")],
)
def test_no_fallback(include_usage: bool | None, is_supported: bool) -> None:
    usage = a_policy(is_supported=is_supported).of_stream(a_request(stream_options=options(include_usage)))
    assert usage.fallback(error(param="stream_options")) is None


def test_a_fallback_alone_changes_nothing_for_later_streams() -> None:
    policy = UsagePolicy()
    policy.of_stream(a_request()).fallback(error(param="stream_options"))
    assert sent(a_request(), policy) == USAGE


def test_one_model_without_usage_changes_nothing_for_others() -> None:
    policy = UsagePolicy()
    policy.disable("old")
    policy.disable("old")
    assert sent(a_request(model="old"), policy) is None
    for model in ("", "new", "OLD", "old "):
        assert sent(a_request(model=model), policy) == USAGE


def test_the_memory_for_models_is_bounded() -> None:
    policy = UsagePolicy()
    for number in range(3000):
        policy.disable(f"{number} {'x' * 1000}")
    known = [sent(a_request(model=f"{number} {'x' * 1000}"), policy) is None for number in range(3000)]
    assert known == [False] * 2000 + [True] * 1000
