"""The messages of a request, row by row: message in, JSON text out. Responses return in the next request."""

import json
from typing import Any

import pytest
from test_requests import fields_set

from chatrpc.v1 import chat_message_pb2
from chatrpc.v1.chat_message_pb2 import (
    Annotation,
    ChatMessage,
    ContentPart,
    CustomToolCall,
    FilePart,
    FunctionCall,
    ImageUrl,
    InputAudio,
    MediaUrl,
    MessageAudio,
    PromptCacheBreakpoint,
    ToolCall,
    UrlCitation,
)
from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest
from chatrpc_server.core.openai import mapping, requests
from chatrpc_server.core.upstream import ChatRequest

X = '{"x":null}'  # an extra key with a value that only extra_json can send

MESSAGES: dict[str, tuple[dict[str, Any], str]] = {
    "role": ({"role": "robot"}, '{"role":"robot"}'),
    "content": ({"role": "user", "content": "h\u2028i\x00😀"}, '{"role":"user","content":"h\u2028i\\u0000😀"}'),
    "content, empty": ({"role": "user", "content": ""}, '{"role":"user","content":""}'),
    "content parts, not their text": (
        {"role": "user", "content": "view", "content_parts": [ContentPart(text="a"), ContentPart(text="b")]},
        '{"role":"user","content":[{"text":"a","type":"text"},{"text":"b","type":"text"}]}',
    ),
    "name": ({"role": "function", "name": "f"}, '{"role":"function","name":"f"}'),
    "tool call": (
        {
            "role": "assistant",
            "tool_calls": [
                ToolCall(
                    id="i", type="function", function=FunctionCall(name="f", arguments="{", extra_json=X), extra_json=X
                )
            ],
        },
        '{"role":"assistant","tool_calls":[{"id":"i","type":"function","function":'
        '{"name":"f","arguments":"{","x":null},"x":null}],"content":null}',
    ),
    "tool call, empty fields": (
        {"role": "assistant", "tool_calls": [ToolCall(function=FunctionCall())]},
        '{"role":"assistant","tool_calls":[{"function":{"name":"","arguments":""},"type":"function"}],"content":null}',
    ),
    "custom call": (
        {"role": "assistant", "tool_calls": [ToolCall(custom=CustomToolCall(name="c", input="i", extra_json=X))]},
        '{"role":"assistant","tool_calls":[{"custom":{"name":"c","input":"i","x":null},"type":"custom"}],"content":null}',
    ),
    "custom call, empty fields": (
        {"role": "assistant", "tool_calls": [ToolCall(custom=CustomToolCall())]},
        '{"role":"assistant","tool_calls":[{"custom":{"name":"","input":""},"type":"custom"}],"content":null}',
    ),
    "tool_call_id": ({"role": "tool", "tool_call_id": "i"}, '{"role":"tool","tool_call_id":"i"}'),
    "refusal": ({"role": "assistant", "refusal": "no"}, '{"role":"assistant","refusal":"no","content":null}'),
    "both reasonings": (
        {"role": "assistant", "reasoning_content": "a", "reasoning": "b"},
        '{"role":"assistant","reasoning_content":"a","reasoning":"b","content":null}',
    ),
    "function call": (
        {"role": "assistant", "function_call": FunctionCall(name="f", arguments="{}")},
        '{"role":"assistant","function_call":{"name":"f","arguments":"{}"},"content":null}',
    ),
    "only the id of audio": (
        {
            "role": "assistant",
            "audio": MessageAudio(id="a", expires_at=1, data="d", transcript="t", extra_json="not even read"),
        },
        '{"role":"assistant","audio":{"id":"a"},"content":null}',
    ),
    "no annotations": (
        {
            "role": "assistant",
            "annotations": [
                Annotation(
                    type="url_citation",
                    url_citation=UrlCitation(start_index=0, end_index=1, url="u", title="t", extra_json=X),
                    extra_json=X,
                )
            ],
            "extra_json": '{"annotations":5,"images":[]}',
        },
        '{"role":"assistant","images":[],"content":null}',
    ),
    "no content of another role": ({"role": "tool", "tool_call_id": "i"}, '{"role":"tool","tool_call_id":"i"}'),
    "no keys of a choice": (
        {
            "role": "assistant",
            "content": "c",
            "extra_json": '{"index":0,"logprobs":[],"finish_reason":"stop","usage":{},"obfuscation":"x","x":1}',
        },
        '{"role":"assistant","content":"c","x":1}',
    ),
    "keys of a choice in another role": (
        {"role": "user", "extra_json": '{"index":0,"logprobs":[]}'},
        '{"role":"user","index":0,"logprobs":[]}',
    ),
    "no index of a call": (
        {"role": "assistant", "tool_calls": [ToolCall(id="i", extra_json='{"index":1,"x":{"index":2}}')]},
        '{"role":"assistant","tool_calls":[{"id":"i","x":{"index":2}}],"content":null}',
    ),
    "arguments of another type": (
        {"role": "assistant", "function_call": FunctionCall(name="f", extra_json='{"arguments":5}')},
        '{"role":"assistant","function_call":{"name":"f","arguments":5},"content":null}',
    ),
    "extra_json": (
        {"role": "assistant", "extra_json": '{"content":null,"reasoning_details":[{"signature":"s"}]}'},
        '{"role":"assistant","content":null,"reasoning_details":[{"signature":"s"}]}',
    ),
}

PARTS: dict[str, tuple[ContentPart, str]] = {
    "text": (ContentPart(type="text", text="t"), '{"type":"text","text":"t"}'),
    "text, empty": (ContentPart(text=""), '{"text":"","type":"text"}'),
    "image": (
        ContentPart(type="image_url", image_url=ImageUrl(url="u", detail="low", extra_json=X), extra_json=X),
        '{"type":"image_url","image_url":{"url":"u","detail":"low","x":null},"x":null}',
    ),
    "audio": (
        ContentPart(input_audio=InputAudio(data="d", format="wav", extra_json=X)),
        '{"input_audio":{"data":"d","format":"wav","x":null},"type":"input_audio"}',
    ),
    "file": (
        ContentPart(file=FilePart(filename="n", file_data="d", file_id="i", extra_json=X)),
        '{"file":{"filename":"n","file_data":"d","file_id":"i","x":null},"type":"file"}',
    ),
    "refusal": (ContentPart(refusal="no"), '{"refusal":"no","type":"refusal"}'),
    "film": (
        ContentPart(video_url=MediaUrl(url="u", extra_json=X)),
        '{"video_url":{"url":"u","x":null},"type":"video_url"}',
    ),
    "recording": (ContentPart(audio_url=MediaUrl(url="u")), '{"audio_url":{"url":"u"},"type":"audio_url"}'),
    "breakpoint": (
        ContentPart(text="t", prompt_cache_breakpoint=PromptCacheBreakpoint(mode="explicit", ttl="30m", extra_json=X)),
        '{"text":"t","prompt_cache_breakpoint":{"mode":"explicit","ttl":"30m","x":null},"type":"text"}',
    ),
    "a provider's own": (ContentPart(type="doc", extra_json='{"doc":{"a":1}}'), '{"type":"doc","doc":{"a":1}}'),
    "a provider's own type as an extra": (ContentPart(extra_json='{"type":"doc"}'), '{"type":"doc"}'),
    "empty": (ContentPart(), "{}"),
}


def sent(*messages: ChatMessage) -> str:
    body = requests.unary_body(ChatRequest(messages=messages)).decode()
    return body.removeprefix('{"messages":[').removesuffix("]}")


@pytest.mark.parametrize(("fields", "expected"), MESSAGES.values(), ids=MESSAGES)
def test_message(fields: dict[str, Any], expected: str) -> None:
    assert sent(ChatMessage(**fields)) == expected


@pytest.mark.parametrize(("part", "expected"), PARTS.values(), ids=PARTS)
def test_part(part: ContentPart, expected: str) -> None:
    message = ChatMessage(role="user", content_parts=[part])
    assert sent(message) == '{"role":"user","content":[' + expected + "]}"


def test_every_field_has_a_row() -> None:
    rows = [ChatMessage(**fields) for fields, _ in MESSAGES.values()] + [part for part, _ in PARTS.values()]
    seen = set().union(*map(fields_set, rows))
    declared = chat_message_pb2.DESCRIPTOR.message_types_by_name.values()
    assert {field.full_name for message in declared for field in message.fields} - seen == set()


SAID: dict[str, str] = {
    "thinking": '{"role":"assistant","content":"4","reasoning_content":"2+2","reasoning":"two and two"}',
    "signatures": '{"role":"assistant","tool_calls":[{"id":"i","type":"function","function":'
    '{"name":"f","arguments":"{}"},"extra_content":{"google":{"thought_signature":"Cg=="}}}],"content":null}',
    "details": '{"role":"assistant","content":"","reasoning_details":[{"type":"reasoning.encrypted","index":0}]}',
    "parts": '{"role":"assistant","content":[{"type":"thinking","thinking":[{"a":1.0}]},{"type":"text","text":"t"}]}',
    "odd types": '{"role":"assistant","content":5,"refusal":{},"name":[1]}',
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_a_response_returns_unchanged(said: str) -> None:
    message = ChatMessage()
    mapping.read(message, json.loads(said))
    assert json.loads(sent(message)) == json.loads(said)


def test_fields_that_only_responses_have_are_not_sent() -> None:
    message = ChatMessage()
    mapping.read(
        message,
        {
            "role": "assistant",
            "annotations": [{"type": "url_citation"}],
            "audio": {"id": "a", "data": "d", "transcript": "t", "expires_at": 1, "x": 1},
        },
    )
    assert sent(message) == '{"role":"assistant","audio":{"id":"a"},"content":null}'


@pytest.mark.parametrize(
    ("part", "type_name"),
    [
        (ContentPart(text=""), "text"),
        (ContentPart(image_url={"url": "u"}), "image_url"),
        (ContentPart(input_audio={"data": "QQ"}), "input_audio"),
        (ContentPart(file={"file_id": "f"}), "file"),
        (ContentPart(refusal="no"), "refusal"),
        (ContentPart(video_url={"url": "u"}), "video_url"),
        (ContentPart(audio_url={"url": "u"}), "audio_url"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_part_has_the_type_of_its_content(part: ContentPart, type_name: str) -> None:
    message = ChatMessage(role="user", content_parts=[part])
    body = json.loads(requests.unary_body(CreateChatCompletionRequest(messages=[message])))
    assert body["messages"][0]["content"][0]["type"] == type_name
