"""Whole responses: completions, errors with status 200, and bodies that are neither."""

import json
from typing import Any

import pytest

from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc.v1.chat_response_pb2 import Choice, Usage
from chatrpc_server.core.errors import ErrorResponse, InvalidResponse, Reason, Truncated
from chatrpc_server.core.openai import responses
from chatrpc_server.core.upstream import ChatResponse

HI = ChatResponse(choices=[Choice(message=ChatMessage(role="assistant", content="hi"))])
HI_STOPPED = ChatResponse(choices=[Choice(message=ChatMessage(role="assistant", content="hi"), finish_reason="stop")])
BODY = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"}}]}'

COMPLETIONS: dict[str, tuple[bytes, ChatResponse]] = {
    "plain": (BODY, HI),
    "empty lines before it": (b"\n\n \n" + BODY, HI),
    "byte order mark": (b"\xef\xbb\xbf" + BODY, HI),
    "no choices made": (b'{"choices":[]}', ChatResponse()),
    "nulls": (b'{"id":null,"error":null,"choices":[],"usage":null}', ChatResponse()),
    "an error key without an error": (
        b'{"error":"","choices":[]}',
        ChatResponse(extra_json='{"error":""}'),
    ),
    "array of one": (b"[" + BODY + b"]", HI),
    "lines of chunks": (
        b'{"choices":[{"delta":{"role":"assistant","content":"h"}}]}\n'
        b'{"choices":[{"delta":{"content":"i"},"finish_reason":"stop"}]}\n',
        HI_STOPPED,
    ),
    "[DONE] behind it": (BODY + b"\n\ndata: [DONE]\n\n", HI),
    "other text behind it": (BODY + b" x", HI),
    "raw control characters": (
        b'{"choices":[{"message":{"content":"a\n\tb"}}]}',
        ChatResponse(choices=[Choice(message=ChatMessage(content="a\n\tb"))]),
    ),
    "a stream": (
        b'data: {"choices":[{"delta":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}\n\n',
        HI_STOPPED,
    ),
    "no message": (b'{"choices":[{"finish_reason":"stop"}]}', ChatResponse(choices=[Choice(finish_reason="stop")])),
    "choices that are not objects": (b'{"choices":[5]}', ChatResponse(extra_json='{"choices":[5]}')),
    "half a pair": (
        rb'{"choices":[{"message":{"content":"a\ud83d"}}]}',
        ChatResponse(choices=[Choice(message=ChatMessage(content="a\ufffd"))]),
    ),
    "invalid UTF-8": (
        b'{"choices":[{"message":{"content":"a\xff"}}]}',
        ChatResponse(choices=[Choice(message=ChatMessage(content="a\ufffd"))]),
    ),
    "NaN": (
        b'{"choices":[],"usage":{"total_tokens":NaN,"time":Infinity}}',
        ChatResponse(usage=Usage(extra_json='{"total_tokens":null,"time":null}')),
    ),
    "whole floats as counts": (
        b'{"choices":[],"usage":{"total_tokens":3.0}}',
        ChatResponse(usage=Usage(total_tokens=3)),
    ),
}


@pytest.mark.parametrize(("body", "expected"), COMPLETIONS.values(), ids=COMPLETIONS)
def test_completion(body: bytes, expected: ChatResponse) -> None:
    assert responses.parse_response(body) == expected


INVALID: dict[str, tuple[bytes, str]] = {
    "HTML": (b"<html>", "is an HTML page"),
    "an error in words": (b"upstream connect error", "is not JSON (22 bytes)"),
    "a word": (b"Hello", "is not JSON (5 bytes)"),
    "cut": (BODY[:-1], f"is not JSON ({len(BODY) - 1} bytes)"),
    "cut in a string": (BODY[:60], "is not JSON (60 bytes)"),
    "text": (b'"hi"', "is not a chat completion: it has no array `choices`"),
    "array": (b"[5]", "is not a chat completion: it has no array `choices`"),
    "array of others": (b'[{"a":1}]', "is not a chat completion: it has no array `choices`"),
    "null": (b"null", "is not a chat completion: it has no array `choices`"),
    "no choices": (b'{"id":"i"}', "is not a chat completion: it has no array `choices`"),
    "choices null": (b'{"choices":null}', "is not a chat completion: it has no array `choices`"),
    "choices object": (b'{"choices":{}}', "is not a chat completion: it has no array `choices`"),
}


@pytest.mark.parametrize(("body", "message"), INVALID.values(), ids=INVALID)
def test_no_completion(body: bytes, message: str) -> None:
    with pytest.raises(InvalidResponse) as caught:
        responses.parse_response(body)
    assert message in caught.value.message
    assert caught.value.reason is Reason.UPSTREAM_INVALID_RESPONSE


BEHIND = ("array of one", "lines of chunks", "[DONE] behind it", "raw control characters", "a stream")
CUT: dict[str, bytes] = {
    "lines": b'{"choices":[{"delta":{"content":"h"}}]}\n{"choi',
    "a stream": b'data: {"choices":[{"delta":{"content":"h"}}]}\n\n',
}


@pytest.mark.parametrize("body", CUT.values(), ids=CUT)
def test_a_cut_response_is_truncated(body: bytes) -> None:
    with pytest.raises(Truncated):
        responses.parse_response(body)
    assert not responses.is_whole(body)


@pytest.mark.parametrize("body", [BODY + b"\n\n", b'{"error":"m"}', *(COMPLETIONS[name][0] for name in BEHIND)])
def test_is_whole(body: bytes) -> None:
    assert responses.is_whole(body)


@pytest.mark.parametrize("body", [b"", b"\n\n", b"\xef\xbb\xbf \r\n"], ids=["empty", "blank lines", "byte order mark"])
def test_a_blank_response_can_be_retried(body: bytes) -> None:
    with pytest.raises(InvalidResponse, match="is empty") as caught:
        responses.parse_response(body)
    assert caught.value.is_transient


ERRORS: dict[str, tuple[Any, Reason, str]] = {
    "object": ({"error": {"message": "m", "code": 429}}, Reason.UPSTREAM_RATE_LIMITED, "m"),
    "object beside choices": (
        {"error": {"message": "m", "code": 502}, "choices": []},
        Reason.UPSTREAM_UNAVAILABLE,
        "m",
    ),
    "text": ({"error": "m"}, Reason.UPSTREAM_ERROR_BODY, "m"),
    "flat": ({"object": "error", "message": "m", "code": 400}, Reason.UPSTREAM_INVALID_REQUEST, "m"),
    "list": ([{"error": {"message": "m", "code": 400}}], Reason.UPSTREAM_INVALID_REQUEST, "m"),
    "empty object": ({"error": {}}, Reason.UPSTREAM_ERROR_BODY, "the upstream sent an error without a message"),
}


@pytest.mark.parametrize(("source", "reason", "message"), ERRORS.values(), ids=ERRORS)
def test_error_in_success(source: Any, reason: Reason, message: str) -> None:
    body = json.dumps(source).encode()
    with pytest.raises(ErrorResponse) as caught:
        responses.parse_response(body)
    error = caught.value
    assert (error.reason, error.message, error.in_success) == (reason, message, True)
    assert (error.detail.http_status, error.detail.raw_body) == (200, body.decode())
