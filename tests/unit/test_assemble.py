"""core/openai/assemble.py: a stream assembled into one response."""

import json
from typing import Any

import pytest

from chatrpc_server.core.errors import ChatError, Reason
from chatrpc_server.core.openai import responses
from chatrpc_server.core.openai.assemble import assemble
from support.walker import to_json

HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def sse(*chunks: dict[str, Any], done: bool = True) -> bytes:
    body = b"".join(b"data: " + json.dumps({**HEAD, **chunk}).encode() + b"\n\n" for chunk in chunks)
    return body + b"data: [DONE]\n\n" * done


def choice(delta: dict[str, Any] | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, **({"delta": delta} if delta is not None else {}), **fields}]}


def logprobs(*tokens: str) -> dict[str, Any]:
    return {"content": [{"token": token, "logprob": -0.5} for token in tokens]}


def call(index: int, **fields: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **fields}]}


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "text": (
        [choice({"role": "assistant", "content": ""}), choice({"content": "Hel"}), choice({"content": "lo"})],
        {"message": {"role": "assistant", "content": "Hello"}},
    ),
    "reasoning-and-refusal": (
        [
            choice({"reasoning_content": "a", "reasoning": "x"}),
            choice({"reasoning_content": "b", "reasoning": "y", "refusal": "n"}),
            choice({"refusal": "o"}),
        ],
        {"message": {"reasoning_content": "ab", "reasoning": "xy", "refusal": "no"}},
    ),
    "finish-and-logprobs": (
        [choice({"content": "a"}, logprobs=logprobs("a")), choice({}, logprobs=logprobs("b"), finish_reason="stop")],
        {"message": {"content": "a"}, "logprobs": logprobs("a", "b"), "finish_reason": "stop"},
    ),
    "choice-without-delta": (
        [choice({"content": "a"}), choice(content_filter_offsets={"start": 1})],
        {"message": {"content": "a"}, "content_filter_offsets": {"start": 1}},
    ),
    "never-a-delta": ([choice(content_filter_offsets={"start": 1})], {"content_filter_offsets": {"start": 1}}),
    "tool-calls": (
        [
            choice(call(1, id="b", type="function", function={"name": "g", "arguments": ""}, extra_content={"s": 1})),
            choice(call(0, id="a", type="function", function={"name": "f", "arguments": '{"x"', "odd": 1})),
            choice(call(0, function={"arguments": ":1}"})),
            choice(call(2, id="c", type="custom", custom={"name": "h", "input": "12", "odd": 2})),
            choice(call(2, custom={"input": "3"})),
        ],
        {
            "message": {
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}', "odd": 1}},
                    {"id": "b", "type": "function", "function": {"name": "g"}, "extra_content": {"s": 1}},
                    {"id": "c", "type": "custom", "custom": {"name": "h", "input": "123", "odd": 2}},
                ]
            }
        },
    ),
    "names-again": (
        [
            choice(call(0, id="a", function={"name": "f", "arguments": "["})),
            choice(call(0, id="a", function={"name": "f", "arguments": "]"})),
            choice(call(1, custom={"name": "g", "input": "1"})),
            choice(call(1, custom={"name": "g", "input": "2"})),
            choice({"function_call": {"name": "h", "arguments": "{"}}),
            choice({"function_call": {"name": "h", "arguments": "}"}}),
        ],
        {
            "message": {
                "tool_calls": [
                    {"id": "a", "function": {"name": "f", "arguments": "[]"}},
                    {"custom": {"name": "g", "input": "12"}},
                ],
                "function_call": {"name": "h", "arguments": "{}"},
            }
        },
    ),
    "legacy-function-call": (
        [
            choice({"function_call": {"name": "f", "arguments": "{"}}),
            choice({"function_call": {"arguments": "}", "odd": True}}),
        ],
        {"message": {"function_call": {"name": "f", "arguments": "{}", "odd": True}}},
    ),
    "audio": (
        [
            choice({"audio": {"id": "a", "transcript": "Hel", "data": "QQ"}}),
            choice({"audio": {"transcript": "lo", "expires_at": 9, "odd": 1}}),
        ],
        {"message": {"audio": {"id": "a", "transcript": "Hello", "data": "QQ", "expires_at": 9, "odd": 1}}},
    ),
    "audio-in-pieces": (
        [choice({"audio": {"data": data}}) for data in ("YWJj", "ZA==", "ZWY=", "?")],
        {"message": {"audio": {"data": "YWJjZGVm?"}}},
    ),
    "audio-without-data": ([choice({"audio": {"id": "a"}})], {"message": {"audio": {"id": "a"}}}),
    "audio-with-empty-pieces": (
        [choice({"audio": {"data": data}}) for data in ("", "YWJj", "", "ZA==", "")],
        {"message": {"audio": {"data": "YWJjZA=="}}},
    ),
    "audio-that-is-no-base64": (
        [choice({"audio": {"data": data}}) for data in ("YQ==", "Y")],
        {"message": {"audio": {"data": "YQ==Y"}}},
    ),
    "text-around-parts": (
        [
            choice({"content": "a"}),
            choice({"content": [{"type": "thinking", "thinking": []}]}),
            choice({"content": "b"}),
            choice({"content": "c"}),
        ],
        {
            "message": {
                "content": [
                    {"type": "text", "text": "a"},
                    {"type": "thinking", "thinking": []},
                    {"type": "text", "text": "bc"},
                ]
            }
        },
    ),
    "parts-annotations-extras": (
        [
            choice({"content": [{"type": "text", "text": "a"}], "reasoning_details": [{"i": 0}], "images": 1}),
            choice({"content": [{"type": "text", "text": "b"}], "reasoning_details": [{"i": 1}], "images": 2}),
            choice({"annotations": [{"type": "x"}]}),
            choice({"annotations": [{"type": "y"}]}),
        ],
        {
            "message": {
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "annotations": [{"type": "x"}, {"type": "y"}],
                "reasoning_details": [{"i": 0}, {"i": 1}],
                "images": 2,
            }
        },
    ),
}


@pytest.mark.parametrize(("chunks", "expected"), CASES.values(), ids=CASES)
def test_choice(chunks: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    whole = to_json(responses.parse_streamed_response(sse(*chunks), 10_000))
    assert whole == {**HEAD, "choices": [expected]}


def test_head_usage_and_several_choices() -> None:
    body = sse(
        choice({"content": "b"}, index=1),
        choice({"content": "a"}, citations=["x"]),
        {
            "choices": [],
            "usage": {"prompt_tokens": 1},
            "citations": ["x"],
            "service_tier": "flex",
            "moderation": {"a": 1},
        },
        {"choices": [], "usage": {"prompt_tokens": 2}, "citations": ["y"], "system_fingerprint": "fp", "id": "d"},
    )
    assert to_json(responses.parse_streamed_response(body, 10_000)) == {
        **HEAD,
        "id": "d",
        "choices": [
            {"index": 1, "message": {"content": "b"}},
            {"message": {"content": "a"}, "citations": ["x"]},
        ],
        "usage": {"prompt_tokens": 2},
        "citations": ["y"],
        "service_tier": "flex",
        "system_fingerprint": "fp",
        "moderation": {"a": 1},
    }


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (sse(choice({"content": "a"}), done=False), Reason.UPSTREAM_TRUNCATED),
        (sse(choice({"content": "a"}), {"error": {"message": "no", "code": 429}}), Reason.UPSTREAM_RATE_LIMITED),
        (b"data: {what\n\n", Reason.UPSTREAM_INVALID_RESPONSE),
    ],
    ids=["truncated", "error", "garbage"],
)
def test_fails_as_the_stream_does(body: bytes, reason: Reason) -> None:
    with pytest.raises(ChatError) as failed:
        responses.parse_streamed_response(body, 10_000)
    assert failed.value.reason is reason


def test_chunks_are_assembled_as_the_stream_is() -> None:
    data = sse(choice({"content": "a"}), choice({"content": "b"}, finish_reason="stop"))
    chunks = responses.StreamReader(10_000).feed(data)
    assert assemble(chunks) == responses.parse_streamed_response(data, 10_000)


def test_a_streamed_response_in_reads() -> None:
    data = sse(choice({"content": "a"}, finish_reason="stop"))
    response = responses.StreamedResponse(10_000)
    for byte in data[:-20]:
        assert not response.done
        response.feed(bytes([byte]))
    assert response.pending_bytes == len(data[:-20].rpartition(b"\n\n")[2])
    response.feed(data[-20:])
    assert (response.done, response.pending_bytes) == (True, 0)
    assert response.finish().choices[0].message.content == "a"


def test_unframed_bytes_are_pending() -> None:
    response = responses.StreamedResponse(10_000)
    response.feed(b'{"choices":')
    assert response.pending_bytes == len(b'{"choices":')
    response.feed(b"[]}")
    assert response.finish() == responses.parse_response(b'{"choices":[]}')
