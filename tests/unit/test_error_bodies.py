"""The shapes of error bodies: each beside error statuses, in a success as a whole body, and as an event of a stream."""

import json
from typing import Any

import pytest

from chatrpc_server.core.errors import ErrorResponse, Reason, UpstreamFault
from chatrpc_server.core.openai import error_bodies
from chatrpc_server.core.openai.error_responses import error_in_success, parse
from chatrpc_server.core.openai.stream_reader import StreamReader

INSIDE = {"error": {"message": "This model's maximum context length is 10 tokens.", "code": "context_length_exceeded"}}
RATE, MONEY, INTERNAL = "UPSTREAM_RATE_LIMITED", "UPSTREAM_QUOTA_EXHAUSTED", "UPSTREAM_INTERNAL"
CONTEXT, KEY, UNAVAILABLE = "UPSTREAM_CONTEXT_LENGTH_EXCEEDED", "UPSTREAM_UNAUTHENTICATED", "UPSTREAM_UNAVAILABLE"

SHAPES: dict[str, tuple[Any, str, str]] = {
    # body: message, reason in a success
    "MiniMax": ({"choices": None, "base_resp": {"status_code": 1008, "status_msg": "no money"}}, "no money", MONEY),
    "MiniMax, no choices": ({"choices": [], "base_resp": {"status_code": 1002, "status_msg": "m"}}, "m", RATE),
    "MiniMax, timeout": ({"base_resp": {"status_code": 1001, "status_msg": "m"}}, "m", "UPSTREAM_TIMEOUT"),
    "MiniMax, new": (
        {"type": "error", "error": {"type": "insufficient_balance_error", "message": "m (1008)", "http_code": "429"}},
        "m (1008)",
        MONEY,
    ),
    "Z.ai": ({"code": 500, "msg": "404 NOT_FOUND", "success": False}, "404 NOT_FOUND", INTERNAL),
    "Z.ai, money": ({"code": 1113, "msg": "m", "success": False}, "m", MONEY),
    "Zhipu, digits": ({"error": {"code": "1302", "message": "m"}}, "m", RATE),
    "Zhipu, prompt": ({"error": {"code": "1261", "message": "m"}}, "m", CONTEXT),
    "iFlow": ({"status": "449", "msg": "You exceeded your current rate limit", "body": None}, "You exceeded", RATE),
    "iFlow, key": ({"status": "434", "msg": "m", "body": None}, "m", KEY),
    "iFlow, model": ({"status": 435, "msg": "m"}, "m", "UPSTREAM_MODEL_NOT_FOUND"),
    "DashScope": ({"code": "InvalidApiKey", "message": "m", "request_id": "r1"}, "m", KEY),
    "DashScope, rate": ({"code": "Throttling.RateQuota", "message": "m", "request_id": "r1"}, "m", RATE),
    "DashScope, unknown": ({"code": "Odd", "message": "m", "request_id": "r1"}, "m", "UPSTREAM_ERROR_BODY"),
    "Baidu": ({"error_code": 18, "error_msg": "Open api qps request limit reached", "id": "x"}, "Open api", RATE),
    "Baidu, day": ({"error_code": 17, "error_msg": "m"}, "m", MONEY),
    "Baidu, load": ({"error_code": 336100, "error_msg": "m"}, "m", "UPSTREAM_OVERLOADED"),
    "Cloudflare": (
        {"result": None, "success": False, "errors": [{"code": 7009, "message": "m"}], "messages": []},
        "m",
        UNAVAILABLE,
    ),
    "Cloudflare, gateway": ({"success": False, "error": [{"code": 2001, "message": "m"}]}, "m", "UPSTREAM_ERROR_BODY"),
    "Watsonx": ({"errors": [{"code": "model_not_supported", "message": "m"}]}, "m", "UPSTREAM_MODEL_NOT_FOUND"),
    "ModelScope": ({"errors": {"message": "exceeded today's quota for x"}, "request_id": "r"}, "exceeded", MONEY),
    "Tencent": ({"Response": {"Error": {"Code": "RequestLimitExceeded", "Message": "m"}}}, "m", RATE),
    "Volcengine": ({"ResponseMetadata": {"Error": {"Code": "AccountOverdueError", "Message": "m"}}}, "m", MONEY),
    "iFlytek": ({"header": {"code": 11202, "message": "m", "sid": "s"}}, "m", RATE),
    "status in words": ({"status": "error", "message": "m"}, "m", "UPSTREAM_ERROR_BODY"),
    "HTTP status in words": ({"error": "Error code: 418 - {}"}, "418", "UPSTREAM_ERROR"),
    "HTTP status in words, known": ({"error": {"message": "502 Bad Gateway"}}, "502", UNAVAILABLE),
    "errors, texts": ({"errors": ["m"]}, "m", "UPSTREAM_ERROR_BODY"),
    "only success false": ({"success": False}, "without a message", "UPSTREAM_ERROR_BODY"),
    "status": ({"error": "slow down", "status": 429}, "slow down", RATE),
    "http_code": ({"error": {"message": "m", "http_code": "429"}}, "m", RATE),
    "statusCode": ({"statusCode": 429, "message": "m"}, "m", RATE),
    "status_code": ({"status_code": 503, "message": "m"}, "m", UNAVAILABLE),
    "a float": ({"error": {"message": "m", "code": 429.0}}, "m", RATE),
    "problem+json": ({"type": "about:blank", "title": "t", "status": 429, "detail": "m"}, "m", RATE),
    "AWS": ({"__type": "com.amazon.coral#ThrottlingException", "message": "m"}, "m", RATE),
    "AWS, capital": ({"__type": "ServiceUnavailableException", "Message": "m"}, "m", UNAVAILABLE),
    "Novita": ({"code": 403, "reason": "NOT_ENOUGH_BALANCE", "message": "m", "metadata": {}}, "m", MONEY),
    "xAI": ({"code": "Some resource has been exhausted", "error": "m"}, "m", "UPSTREAM_ERROR_BODY"),
    "Databricks": ({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "m"}, "m", RATE),
    "Ollama": ({"error": "model 'x' not found"}, "model 'x' not found", "UPSTREAM_MODEL_NOT_FOUND"),
    "Gemini": ([{"error": {"code": 503, "message": "m", "status": "UNAVAILABLE"}}], "m", UNAVAILABLE),
    "Gemini, status": ([{"error": {"message": "m", "status": "RESOURCE_EXHAUSTED"}}], "m", RATE),
    "Gemini, key": (
        {"error": {"code": 400, "message": "m", "details": [{"reason": "API_KEY_INVALID"}, 5]}},
        "m",
        KEY,
    ),
    "Azure": (
        {"error": {"message": "m", "code": None, "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
        "m",
        "UPSTREAM_CONTENT_FILTERED",
    ),
    "Mistral": ({"object": "error", "message": "m", "type": "rate_limited", "code": "1300"}, "m", RATE),
    "SiliconFlow": ({"code": 30001, "message": "m", "data": None}, "m", MONEY),
    "OpenRouter, text": (
        {"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": "insufficient balance"}}},
        "Provider returned error: insufficient balance",
        MONEY,
    ),
    "OpenRouter, JSON": (
        {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": json.dumps(INSIDE)}}},
        "Provider returned error: This model's maximum",
        CONTEXT,
    ),
    "OpenRouter, text of JSON": (
        {"error": {"message": "P", "code": 502, "metadata": {"raw": '{"error": "the server is busy"}'}}},
        "P: the server is busy",
        "UPSTREAM_OVERLOADED",
    ),
    "OpenRouter, no JSON": ({"error": {"message": "P", "code": 502, "metadata": {"raw": "{x"}}}, "P", UNAVAILABLE),
    "OpenRouter, a list": ({"error": {"message": "P", "code": 502, "metadata": {"raw": [1]}}}, "P", UNAVAILABLE),
    "a message of JSON": ({"error": {"message": json.dumps(INSIDE)}}, '{"error"', CONTEXT),
    "a message of a message": ({"error": {"message": '{"message": "m", "code": "timeout"}'}}, "{", "UPSTREAM_TIMEOUT"),
    "LiteLLM": (
        {"error": {"message": "{'error': 'Invalid model name passed in model=x'}", "code": "400", "type": "None"}},
        "{'error'",
        "UPSTREAM_MODEL_NOT_FOUND",
    ),
}  # fmt: skip
WEAK: dict[str, tuple[Any, str, str]] = {
    # Messages that say nothing about an error: one as a whole body, none as an event.
    "FastAPI": ({"detail": "Model is loading"}, "Model is loading", UNAVAILABLE),
    "FastAPI, validation": ({"detail": [{"loc": ["body"], "msg": "m"}]}, '[{"loc"', "UPSTREAM_ERROR_BODY"),
    "FastAPI, object": ({"detail": {"error": {"message": "m", "code": "rate_limit_exceeded"}}}, '{"error"', RATE),
    "message": ({"message": "later"}, "later", "UPSTREAM_ERROR_BODY"),
    "message of a timeout": ({"message": "request timed out"}, "request timed out", "UPSTREAM_TIMEOUT"),
    "message, no choices": ({"message": "Too many requests", "choices": None}, "Too many requests", RATE),
}
NONE: dict[str, Any] = {
    "MiniMax, success": {"base_resp": {"status_code": 0, "status_msg": "success"}},
    "MiniMax, no object": {"base_resp": 5},
    "code 0": {"code": 0, "msg": "ok"},
    "code 200": {"code": "200", "message": "success", "data": {}},
    "code of success": {"code": "Success", "message": "m"},
    "status in words": {"status": "processing", "message": "m"},
    "a header of success": {"header": {"code": 0, "message": "Success"}},
    "a header of text": {"header": "m", "Response": {"a": 1}},
    "no errors": {"success": True, "errors": []},
    "code without a message": {"code": 1113},
    "true": {"code": True},
    "event": {"type": "ping"},
    "usage": {"choices": [], "usage": {"total_tokens": 1}},
    "completion with a code": {"choices": [{"index": 0}], "code": 500, "message": "m", "detail": "m"},
    "completion with base_resp": {"choices": [{"index": 0}], "base_resp": {"status_code": 1004, "status_msg": "m"}},
    **{
        f"completion, error {error!r}": {"choices": choices, "error": error}
        for choices in ([], [{"index": 0}])
        for error in (
            {},
            [],
            [{}],
            {"code": None, "message": None, "type": None},
            {"code": 0, "message": ""},
            {"code": 200, "message": "OK"},
            {"code": "0", "message": "success", "param": []},
            {"code": "null", "details": [{}]},
            "",
            "success",
            "null",
        )
    },
}
SOMETHING = ["m", {"message": "m"}, {"code": 5}, ["m"], [{}, {"code": 429}], True, {"a": {"b": {"c": {"d": {}}}}}]


@pytest.mark.parametrize(("body", "message", "reason"), [*SHAPES.values(), *WEAK.values()], ids=[*SHAPES, *WEAK])
def test_whole_body(body: Any, message: str, reason: str) -> None:
    raw = json.dumps(body).encode()
    error = error_in_success(body, raw, is_whole=True)
    assert error is not None
    assert error.reason == Reason(reason)
    assert message in error.message
    assert (error.in_success, error.detail.http_status, error.detail.raw_body) == (True, 200, raw.decode())


@pytest.mark.parametrize(("body", "message", "reason"), SHAPES.values(), ids=SHAPES)
def test_event(body: Any, message: str, reason: str) -> None:
    error = error_in_success(body, b"")
    assert error is not None
    assert error.reason == Reason(reason)
    assert message in error.message


@pytest.mark.parametrize("body", [*NONE.values(), *(body for body, _, _ in WEAK.values())], ids=[*NONE, *WEAK])
def test_no_error_in_an_event(body: Any) -> None:
    assert error_in_success(body, b"") is None


@pytest.mark.parametrize("body", NONE.values(), ids=NONE)
def test_no_error_in_a_whole_body(body: Any) -> None:
    error = error_in_success(body, b"", is_whole=True)
    assert error is None or "choices" not in body


@pytest.mark.parametrize("error", SOMETHING, ids=repr)
def test_an_error_beside_choices(error: Any) -> None:
    assert error_in_success({"choices": [{"index": 0}], "error": error}, b"") is not None


@pytest.mark.parametrize("status", [400, 403, 429, 500, 503])
@pytest.mark.parametrize(("body", "message"), [(b, m) for b, m, _ in SHAPES.values()], ids=SHAPES)
def test_status(status: int, body: Any, message: str) -> None:
    """The message is found beside any status; only the standard message is used if there is none."""
    error = parse(status, {}, json.dumps(body).encode(), 0.0)
    assert isinstance(error, ErrorResponse)
    assert message in error.message or error.message.startswith("the upstream responded with HTTP")
    assert (error.status, error.detail.http_status) == (status, status)


def test_an_error_event_with_choices() -> None:
    body = {"choices": [{"index": 0}], "base_resp": {"status_code": 1008}, "message": "m"}
    error = error_in_success(body, b"", certain=True)
    assert error is not None
    assert error.message == "m"


CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "Hel"}}]}\n\n'
REMAINS: dict[str, tuple[bytes, str, str]] = {
    # what follows a chunk, before the stream ends: reason, words for the caller
    "a line of text": (b"Internal server error\n", "UPSTREAM_TRUNCATED", "Internal server error"),
    "a remark": (b'data: {"detail": "Model is loading"}\n\n', "UPSTREAM_UNAVAILABLE", "Model is loading"),
    "a remark of nothing": (b'data: {"id": "x"}\n\n', "UPSTREAM_TRUNCATED", ""),
    "an error line": (b'{"error": "runner stopped"}\n', "UPSTREAM_ERROR_BODY", "runner stopped"),
    "a bare error": (b'{"error": {"message": "m", "code": 429}}', "UPSTREAM_RATE_LIMITED", "m"),
    "nothing": (b"", "UPSTREAM_TRUNCATED", ""),
    "heartbeats": (b"ping\n", "UPSTREAM_TRUNCATED", ""),
}


@pytest.mark.parametrize(("more", "reason", "words"), REMAINS.values(), ids=REMAINS)
def test_what_a_truncated_stream_says(more: bytes, reason: str, words: str) -> None:
    reader = StreamReader(1 << 20)
    assert len(reader.feed(CHUNK)) == 1
    reader.feed(more)
    reader.finish()
    assert isinstance(reader.error, UpstreamFault)
    assert reader.error.reason == Reason(reason)
    assert words in str(reader.error.detail)
    assert words or reader.error.detail is None


def test_request_id() -> None:
    for body in ({"code": "Odd", "message": "m", "request_id": "r1"}, {"error": {"message": "m"}, "request_id": "r1"}):
        raw = json.dumps(body).encode()
        assert parse(400, {}, raw, 0.0).detail.request_id == "r1"  # type: ignore[attr-defined]
        assert parse(400, {"x-request-id": "r2"}, raw, 0.0).detail.request_id == "r2"  # type: ignore[attr-defined]


TEXTS: dict[str, tuple[bytes, str]] = {
    "text": (b"no healthy upstream", "no healthy upstream"),
    "blank": (b" \r\n", "HTTP 503"),
    "HTML": (b"<html><title>busy</title></html>", "HTTP 503"),
    "cut JSON": (b'{"error": {"mess', "HTTP 503"),
    "compressed": (b"\x1f\x8b\x08\x00\x00", "HTTP 503"),
    "event": (b'event: error\ndata: {"error": {"message": "m"}}\n\n', "m"),
    "event, no blank line": (b'data: {"message": "m"}', "m"),
    "comments": (b': hi\n\ndata: {"error": "m"}\n\ndata: [DONE]\n\n', "m"),
    "llama.cpp": (b'error: {"code": 500, "message": "m"}\n\n', "m"),
    "event of text": (b"event: error\ndata: out of memory\n\n", "out of memory"),
    "no event": (b": hi\n\n", "HTTP 503"),
}


@pytest.mark.parametrize(("body", "message"), TEXTS.values(), ids=TEXTS)
def test_text(body: bytes, message: str) -> None:
    error = parse(503, {}, body, 0.0)
    assert message in error.message


@pytest.mark.parametrize("depth", [5, 400, 9000])
def test_errors_inside_of_errors(depth: int) -> None:
    text = '{"message":' * depth + '"m"' + "}" * depth
    assert parse(503, {}, text.encode(), 0.0).message
    nested: Any = {}
    for _ in range(depth):
        nested = {"innererror": nested}
    assert not error_bodies.says_nothing(nested)
    assert error_in_success({"error": nested, "choices": []}, b"") is not None
