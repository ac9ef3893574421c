"""Responses with many values: the same messages as those of small responses, within limits of values."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from chatrpc_server.core.errors import InvalidResponse
from chatrpc_server.core.openai import json_cursor, jsontext, large_responses, limits, responses

TOKENS = [
    {"token": f"t{number}", "logprob": -0.5, "bytes": [1, number], "top_logprobs": [{"token": "x", "logprob": -1}]}
    for number in range(7)
]
LISTS = {"content": TOKENS, "refusal": TOKENS[:3], "odd": [1, {"a": None}]}


def body(**choice: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, **choice}
    return {"id": "c", "choices": [choice, {"index": 1}], "usage": {"total_tokens": 3}, "citations": ["x" * 3000]}


CASES: dict[str, Any] = {
    "both lists": body(logprobs=LISTS),
    "no tokens": body(logprobs={"content": [], "refusal": None}),
    "empty": body(logprobs={}),
    "null": body(logprobs=None),
    "not an object": body(logprobs=[TOKENS]),
    "a list that is no list": body(logprobs={"content": {"token": "a"}, "refusal": TOKENS}),
    "a list with another value": body(logprobs={"content": [*TOKENS, 5], "refusal": TOKENS}),
    "choices that are no objects": {"choices": [{"logprobs": LISTS}, 5]},
    "no choices": {"choices": [], "odd": {"logprobs": LISTS}},
}


@pytest.fixture(autouse=True)
def _in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_responses, "_PIECE_ELEMENTS", 2)
    monkeypatch.setattr(json_cursor, "_SMALL_CHARACTERS", 64)


def make_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_responses, "_MANY_VALUES", 0)


@pytest.mark.parametrize("source", CASES.values(), ids=CASES)
def test_complete_response(source: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.dumps(source, indent=1).encode()
    expected = responses.parse_response(data)
    make_large(monkeypatch)
    assert responses.parse_response(data) == expected


@pytest.mark.parametrize("source", CASES.values(), ids=CASES)
def test_event(source: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"data: " + json.dumps(source).encode() + b"\n\ndata: [DONE]\n\n"
    expected = responses.StreamReader(1 << 20).feed(data)
    make_large(monkeypatch)
    reader = responses.StreamReader(1 << 20)
    assert reader.feed(data) == expected
    assert not reader.error


def test_the_second_of_two_lists_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    make_large(monkeypatch)
    message = responses.parse_response(
        b'{"choices":[{"logprobs":{"content":[{"token":"a"}],"content":[{"token":"b"},{"token":"c"}]}}]}'
    )
    assert [token.token for token in message.choices[0].logprobs.content] == ["b", "c"]


INVALID: dict[str, bytes] = {
    "cut off": b'{"choices":[{"logprobs":{"content":[{"token":"a"}',
    "no bracket": b'{"choices":[{"logprobs":{"content":[{"token":"a"}}}]}',
    "an array": b'[{"a":1}]',
    "nested too deeply": b'{"choices":[],"a":' + b"[" * 9999 + b"]" * 9999 + b"}",
    "nested too deeply in logprobs": b'{"choices":[{"logprobs":{"x":' + b"[" * 9999 + b"]" * 9999 + b"}}]}",
}


@pytest.mark.parametrize("data", INVALID.values(), ids=INVALID)
def test_invalid_response(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    make_large(monkeypatch)
    with pytest.raises(InvalidResponse):
        responses.parse_response(data)


@pytest.mark.parametrize("read", [responses.parse_response, lambda data: stream_error(b"data: " + data + b"\n\n")])
def test_too_many_values(read: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    make_large(monkeypatch)
    monkeypatch.setattr(jsontext.count_values, "__defaults__", (4,))
    with pytest.raises(InvalidResponse, match="it has 5 commas and opening brackets; the limit is 4") as raised:
        read(b'{"choices":[],"a":[1,2]}')
    assert raised.value.kind == "oversize"


def test_only_token_probabilities_can_have_more_values_than_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    make_large(monkeypatch)
    monkeypatch.setattr(json_cursor, "MAX_VALUES", 40)
    monkeypatch.setattr(large_responses, "_PIECE_VALUES", 10)
    source = {"choices": [{"logprobs": {"content": TOKENS * 20, "refusal": TOKENS}}], "odd": [1, 2, 3]}
    logprobs = responses.parse_response(json.dumps(source).encode()).choices[0].logprobs
    assert (len(logprobs.content), len(logprobs.refusal)) == (len(TOKENS) * 20, len(TOKENS))
    for odd in ({"odd": [0] * 50}, {"choices": [{"logprobs": {"content": [{"bytes": [0] * 50}]}}]}):
        with pytest.raises(InvalidResponse, match="it has more than 40 values besides token probabilities") as raised:
            responses.parse_response(json.dumps({"choices": [], **odd}).encode())
        assert raised.value.kind == "oversize"


def test_too_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    make_large(monkeypatch)
    monkeypatch.setattr(limits, "MAX_TOKENS", 9)
    data = json.dumps({"choices": [{"logprobs": {"content": TOKENS, "refusal": TOKENS[:2]}}]}).encode()
    assert len(responses.parse_response(data).choices[0].logprobs.content) == len(TOKENS)
    with pytest.raises(InvalidResponse, match="has 10 token probabilities; the limit is 9") as raised:
        responses.parse_response(data.replace(b'"refusal": [', b'"refusal": [{},'))
    assert raised.value.kind == "oversize"


def stream_error(data: bytes) -> None:
    reader = responses.StreamReader(1 << 20)
    reader.feed(data)
    assert reader.error
    raise reader.error
