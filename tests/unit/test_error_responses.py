"""Error responses of upstreams: every status and shape of body, the time of the retry, and the bounds."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc.v1.chat_error_pb2 import UpstreamError
from chatrpc_server.core.errors import ErrorResponse, InvalidResponse, Reason
from chatrpc_server.core.openai.error_responses import (
    FIELD_BYTES,
    MESSAGE_BYTES,
    RAW_BODY_BYTES,
    error_in_success,
    parse,
)

NOW = 1_700_000_000.0
"""Tue, 14 Nov 2023 22:13:20 GMT."""


def refusal(status: int = 400, body: Any = b"", headers: dict[str, str] | None = None) -> ErrorResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    error = parse(status, headers or {}, data, NOW)
    assert isinstance(error, ErrorResponse)
    assert (error.status, error.detail.http_status, error.in_success) == (status, status, False)
    assert error.message == error.detail.message
    return error


STATUSES = [
    (400, "", "UPSTREAM_INVALID_REQUEST"),
    (400, "context_length_exceeded", "UPSTREAM_CONTEXT_LENGTH_EXCEEDED"),
    (400, "string_above_max_length", "UPSTREAM_CONTEXT_LENGTH_EXCEEDED"),
    (400, "content_filter", "UPSTREAM_CONTENT_FILTERED"),
    (400, "content_policy_violation", "UPSTREAM_CONTENT_FILTERED"),
    (400, "model_not_found", "UPSTREAM_MODEL_NOT_FOUND"),
    (400, "insufficient_quota", "UPSTREAM_QUOTA_EXHAUSTED"),
    (401, "invalid_api_key", "UPSTREAM_UNAUTHENTICATED"),
    (402, "", "UPSTREAM_INSUFFICIENT_BALANCE"),
    (403, "", "UPSTREAM_FORBIDDEN"),
    (403, "moderation", "UPSTREAM_MODERATED"),
    (403, "content_filter", "UPSTREAM_MODERATED"),
    (404, "", "UPSTREAM_NOT_FOUND"),
    (404, "model_not_found", "UPSTREAM_MODEL_NOT_FOUND"),
    (404, "DeploymentNotFound", "UPSTREAM_MODEL_NOT_FOUND"),
    (405, "", "UPSTREAM_UNIMPLEMENTED"),
    (408, "", "UPSTREAM_TIMEOUT"),
    (409, "", "UPSTREAM_CONFLICT"),
    (413, "", "UPSTREAM_REQUEST_TOO_LARGE"),
    (415, "", "UPSTREAM_UNPROCESSABLE"),
    (422, "", "UPSTREAM_UNPROCESSABLE"),
    (429, "rate_limit_exceeded", "UPSTREAM_RATE_LIMITED"),
    (429, "insufficient_quota", "UPSTREAM_QUOTA_EXHAUSTED"),
    (500, "", "UPSTREAM_INTERNAL"),
    (501, "", "UPSTREAM_UNIMPLEMENTED"),
    (502, "", "UPSTREAM_UNAVAILABLE"),
    (503, "", "UPSTREAM_UNAVAILABLE"),
    (503, "overloaded", "UPSTREAM_OVERLOADED"),
    (503, "overloaded_error", "UPSTREAM_OVERLOADED"),
    (504, "", "UPSTREAM_TIMEOUT"),
    *((status, "", "UPSTREAM_UNAVAILABLE") for status in (520, 521, 522, 523)),
    (524, "", "UPSTREAM_TIMEOUT"),
    (529, "", "UPSTREAM_OVERLOADED"),
    (425, "", "UPSTREAM_UNAVAILABLE"),
    (498, "", "UPSTREAM_OVERLOADED"),
    (499, "", "UPSTREAM_UNAVAILABLE"),
    *((status, "", "UPSTREAM_ERROR") for status in (406, 410, 418, 451, 505, 525, 599, 999)),
]


@pytest.mark.parametrize(("status", "code", "reason"), STATUSES, ids=[f"{row[0]} {row[1]}" for row in STATUSES])
def test_reason(status: int, code: str, reason: str) -> None:
    assert refusal(status, {"error": {"code": code}}).reason == Reason(reason)
    assert refusal(status, {"error": {"code": "other", "type": code}}).reason == Reason(reason)


BODIES: dict[str, tuple[Any, dict[str, Any]]] = {
    # body: message, type, param and code in the caller's details
    "OpenAI": (
        {"error": {"message": "m", "type": "t", "param": "messages[0].role", "code": "c"}},
        {"message": "m", "type": "t", "param": "messages[0].role", "code": "c"},
    ),
    "nulls": ({"error": {"message": "m", "type": "t", "param": None, "code": None}}, {"message": "m", "type": "t"}),
    "empty texts": ({"error": {"message": "m", "type": "", "param": "", "code": ""}}, {"message": "m"}),
    "a number as code": ({"error": {"message": "m", "code": 429}}, {"message": "m", "code": "429"}),
    "an object as param": ({"error": {"message": "m", "param": {"a": 1}}}, {"message": "m", "param": '{"a":1}'}),
    "an array as message": ({"error": {"message": ["a", 1]}}, {"message": '["a",1]'}),
    "text": ({"error": "m"}, {"message": "m"}),
    "text and code": ({"error": "m", "code": 5, "message": "n"}, {"message": "m", "code": "5"}),
    "true and message": ({"error": True, "message": "m", "type": "t"}, {"message": "m", "type": "t"}),
    "Bedrock": ({"message": "m"}, {"message": "m"}),
    "SGLang": (
        {"object": "error", "message": "m", "type": "T", "param": None, "code": 400},
        {"message": "m", "type": "T", "code": "400"},
    ),
    "FastAPI": ({"detail": "m"}, {"message": "m"}),
    "FastAPI, validation": ({"detail": [{"loc": ["body"]}]}, {"message": '[{"loc":["body"]}]'}),
    "Gemini": ([{"error": {"message": "m", "code": 400, "status": "S"}}], {"message": "m", "code": "400"}),
    "Anthropic": (
        {"type": "error", "error": {"type": "invalid_request_error", "message": "m"}},
        {"message": "m", "type": "invalid_request_error"},
    ),
    "JSON text": ("m", {"message": "m"}),
    "a list of texts": ({"error": ["m"]}, {"message": "m"}),
    "an array without error": ([{"message": "m"}], {"message": "m"}),
    "byte order mark": (b'\xef\xbb\xbf{"error":"m"}', {"message": "m"}),
    "half a pair": (rb'{"error":"m\ud83d"}', {"message": "m\ufffd"}),
    "invalid UTF-8": (b'{"error":"m\xff"}', {"message": "m\ufffd"}),
}
SILENT: dict[str, Any] = {
    "nothing": b"",
    "HTML": b"<html><h1>Bad Gateway</h1></html>",
    "cut": b'{"error":{"mess',
    "empty object": {},
    "empty error": {"error": {}},
    "error null": {"error": None},
    "a list of nothing": {"error": [{}]},
    "empty array": [],
    "number": 5,
    "null": None,
}


@pytest.mark.parametrize(("body", "expected"), BODIES.values(), ids=BODIES)
def test_body(body: Any, expected: dict[str, Any]) -> None:
    detail = refusal(400, body).detail
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert detail == UpstreamError(http_status=400, raw_body=raw.decode("utf-8", "replace"), **expected)


@pytest.mark.parametrize("body", SILENT.values(), ids=SILENT)
def test_body_without_message(body: Any) -> None:
    assert refusal(502, body).message == "the upstream responded with HTTP 502 Bad Gateway"
    assert refusal(599, body).message == "the upstream responded with HTTP 599"


@pytest.mark.parametrize(("encoding", "more"), [("br", "; its body has the encoding br"), ("identity", "")])
def test_body_that_cannot_be_read(encoding: str, more: str) -> None:
    error = refusal(502, headers={"content-encoding": encoding})
    assert error.message == f"the upstream responded with HTTP 502 Bad Gateway{more}"


@pytest.mark.parametrize("depth", [100, 900, 960, 1000, 9000])
def test_body_of_any_depth(depth: int) -> None:
    error = refusal(502, b'{"error":{"message":' + b"[" * depth + b"]" * depth + b"}}")
    assert error.message in ("[" * depth + "]" * depth)[:MESSAGE_BYTES] or error.message.endswith("Bad Gateway")


def test_a_message_too_deep_to_show() -> None:
    message: list[Any] = []
    for _ in range(9000):
        message = [message]
    error = error_in_success({"error": {"message": message, "code": 429}}, b"raw")
    assert error is not None
    assert (error.message, error.status) == ("the upstream sent an error without a message", 429)


@pytest.mark.parametrize(
    ("status", "location", "message"),
    [
        (302, "", "the upstream responded with HTTP 302; redirects are not followed"),
        (302, "/\xe9", "the upstream responded with HTTP 302; redirects are not followed"),
        *(
            (
                308,
                location,
                f"the upstream responded with HTTP 308 to {shown}; redirects are not followed;"
                " correct upstream.base_url",
            )
            for location, shown in (
                ("https://a.example/v1/chat", "https://a.example/v1/chat"),
                ("https://user:pass@a.example:8443/v1?key=secret#part", "https://a.example:8443/v1"),
                ("//u@a.example/v1", "//a.example/v1"),
                ("/v1/", "/v1/"),
                ("/" + "x" * 999, "/" + "x" * 199),
            )
        ),
    ],
)
def test_status_that_is_neither_success_nor_error(status: int, location: str, message: str) -> None:
    error = parse(status, {"location": location}, b"see there", NOW)
    assert isinstance(error, InvalidResponse)
    assert error.message == message
    assert error.detail == UpstreamError(http_status=status, message=message, raw_body="see there")


RETRY_AFTER: dict[str, tuple[dict[str, str], float | None]] = {
    "none": ({}, None),
    "seconds": ({"retry-after": "2"}, 2.0),
    "a fraction": ({"retry-after": " 0.5 "}, 0.5),
    "zero": ({"retry-after": "0"}, 0.0),
    "negative": ({"retry-after": "-5"}, 0.0),
    "milliseconds first": ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
    "milliseconds, not a number": ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
    "date": ({"retry-after": "Tue, 14 Nov 2023 22:14:20 GMT"}, 60.0),
    "date with zone": ({"retry-after": "Tue, 14 Nov 2023 23:14:20 +0100"}, 60.0),
    "date without zone": ({"retry-after": "Tue, 14 Nov 2023 22:14:20"}, 60.0),
    "date in the past": ({"retry-after": "Tue, 14 Nov 2023 22:00:00 GMT"}, 0.0),
    "no date": ({"retry-after": "Tue, 99 Nov 2023 22:00:00 GMT"}, None),
    "words": ({"retry-after": "soon"}, None),
    "empty": ({"retry-after": ""}, None),
    "NaN": ({"retry-after": "nan"}, None),
    "NaN milliseconds": ({"retry-after-ms": "nan", "retry-after": "9"}, 9.0),
    "infinite": ({"retry-after": "inf"}, 1e9),
    "beyond every duration": ({"retry-after": "1e300"}, 1e9),
    "more digits than a number has": ({"retry-after": "9" * 400}, 1e9),
    "milliseconds beyond every duration": ({"retry-after-ms": "9" * 30}, 1e9),
    "date beyond every duration": ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 1e9),
    "minus infinite": ({"retry-after": "-inf"}, 0.0),
    "long": ({"retry-after": "86400"}, 86400.0),
}


@pytest.mark.parametrize(("headers", "expected"), RETRY_AFTER.values(), ids=RETRY_AFTER)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    assert refusal(429, headers=headers).retry_after_seconds == expected


@given(st.text() | st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ ?(GMT|[+-]\d+)?", fullmatch=True))
def test_any_retry_after_is_accepted(value: str) -> None:
    seconds = refusal(429, headers={"retry-after": value, "retry-after-ms": value}).retry_after_seconds
    assert seconds is None or 0 <= seconds <= 1e9


@pytest.mark.parametrize(
    ("value", "expected"), [("true", True), ("false", False), ("", None), ("maybe", None), (None, None)]
)
def test_should_retry(value: str | None, expected: bool | None) -> None:
    assert refusal(500, headers={} if value is None else {"x-should-retry": value}).should_retry is expected


def test_request_id() -> None:
    assert refusal().detail.request_id == ""
    assert refusal(headers={"x-request-id": "req_1"}).detail.request_id == "req_1"
    assert refusal(headers={"x-request-id": "x" * 9999}).detail.request_id == "x" * FIELD_BYTES


@pytest.mark.parametrize("letter", ["a", "é", "€", "😀"])
@pytest.mark.parametrize("shift", range(4))
def test_sizes(letter: str, shift: int) -> None:
    text = "a" * shift + letter * 3000
    body = json.dumps({"error": dict.fromkeys(("message", "type", "param", "code"), text)}, ensure_ascii=False)
    detail = refusal(400, body.encode()).detail
    for cut, whole, limit in (
        (detail.message, text, MESSAGE_BYTES),
        (detail.type, text, FIELD_BYTES),
        (detail.param, text, FIELD_BYTES),
        (detail.code, text, FIELD_BYTES),
        (detail.raw_body, body, RAW_BODY_BYTES),
    ):
        assert whole.startswith(cut)
        assert limit - len(letter.encode()) < len(cut.encode()) <= limit
    assert detail.raw_body_truncated


@pytest.mark.parametrize(("size", "truncated"), [(RAW_BODY_BYTES, False), (RAW_BODY_BYTES + 1, True)])
def test_a_truncated_text_is_marked(size: int, truncated: bool) -> None:
    assert refusal(500, b"x" * size).detail.raw_body_truncated is truncated


IN_SUCCESS: dict[str, tuple[Any, str, int]] = {
    # error: reason, the status of its meaning
    "number": ({"code": 429}, "UPSTREAM_RATE_LIMITED", 429),
    "digits": ({"code": "503"}, "UPSTREAM_UNAVAILABLE", 503),
    "unknown 4xx": ({"code": 418}, "UPSTREAM_ERROR", 418),
    "no HTTP error": ({"code": 200}, "UPSTREAM_ERROR_BODY", 500),
    "too large": ({"code": 600}, "UPSTREAM_ERROR_BODY", 500),
    "negative": ({"code": -1}, "UPSTREAM_ERROR_BODY", 500),
    "unknown word": ({"code": "boom", "type": "bang"}, "UPSTREAM_ERROR_BODY", 500),
    "nothing": ({}, "UPSTREAM_ERROR_BODY", 500),
    "number before type": ({"code": 429, "type": "server_error"}, "UPSTREAM_RATE_LIMITED", 429),
    "number and type": ({"code": 429, "type": "insufficient_quota"}, "UPSTREAM_QUOTA_EXHAUSTED", 429),
    "type": ({"type": "overloaded_error"}, "UPSTREAM_OVERLOADED", 503),
    "type, unknown code": ({"code": "1302", "type": "rate_limit_error"}, "UPSTREAM_RATE_LIMITED", 429),
    "invalid_request_error": ({"code": "invalid_request_error"}, "UPSTREAM_INVALID_REQUEST", 400),
    "context_length_exceeded": ({"code": "context_length_exceeded"}, "UPSTREAM_CONTEXT_LENGTH_EXCEEDED", 400),
    "content_filter": ({"code": "content_filter"}, "UPSTREAM_CONTENT_FILTERED", 400),
    "tool_use_failed": ({"code": "tool_use_failed"}, "UPSTREAM_INVALID_REQUEST", 400),
    "invalid_api_key": ({"code": "invalid_api_key"}, "UPSTREAM_UNAUTHENTICATED", 401),
    "authentication_error": ({"code": "authentication_error"}, "UPSTREAM_UNAUTHENTICATED", 401),
    "permission_error": ({"code": "permission_error"}, "UPSTREAM_FORBIDDEN", 403),
    "model_not_found": ({"code": "model_not_found"}, "UPSTREAM_MODEL_NOT_FOUND", 404),
    "not_found_error": ({"code": "not_found_error"}, "UPSTREAM_NOT_FOUND", 404),
    "rate_limit_exceeded": ({"code": "rate_limit_exceeded"}, "UPSTREAM_RATE_LIMITED", 429),
    "insufficient_quota": ({"code": "insufficient_quota"}, "UPSTREAM_QUOTA_EXHAUSTED", 429),
    "server_error": ({"code": "server_error"}, "UPSTREAM_INTERNAL", 500),
    "api_error": ({"type": "api_error"}, "UPSTREAM_INTERNAL", 500),
    "internal_error": ({"code": "internal_error"}, "UPSTREAM_INTERNAL", 500),
    "service_unavailable": ({"code": "service_unavailable"}, "UPSTREAM_UNAVAILABLE", 503),
    "overloaded": ({"code": "overloaded"}, "UPSTREAM_OVERLOADED", 503),
    "timeout": ({"code": "timeout"}, "UPSTREAM_TIMEOUT", 504),
}


@pytest.mark.parametrize(("error", "reason", "status"), IN_SUCCESS.values(), ids=IN_SUCCESS)
def test_error_in_success(error: Any, reason: str, status: int) -> None:
    found = error_in_success({"error": {"message": "m", **error}}, b"raw")
    assert found is not None
    assert (found.reason, found.status, found.in_success) == (Reason(reason), status, True)
    assert (found.detail.http_status, found.detail.raw_body, found.message) == (200, "raw", "m")


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"choices": []},
        {"error": None},
        {"error": ""},
        {"error": False},
        {"message": "m"},
        {"detail": "m"},
        [],
        [{}],
        5,
    ],
    ids=repr,
)
def test_no_error_in_success(source: Any) -> None:
    assert error_in_success(source, b"") is None
    assert error_in_success(source, b"", certain=True) is not None
