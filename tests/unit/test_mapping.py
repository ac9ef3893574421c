"""The contract of responses, row by row: JSON in, message out. Each field of a response must have a row."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from chatrpc.v1 import chat_message_pb2 as messages
from chatrpc.v1 import chat_request_pb2
from chatrpc.v1 import chat_response_pb2 as answers
from chatrpc.v1.chat_message_pb2 import ChatMessage, ContentPart, FunctionCall
from chatrpc.v1.chat_response_pb2 import Delta, TokenLogprob, Usage
from chatrpc_server.core.openai import mapping
from chatrpc_server.core.openai.exact_numbers import WrittenNumber
from chatrpc_server.core.upstream import ChatChunk, ChatResponse

HIGH, LOW = "\ud83d", "\ude00"  # the halves of 😀
X = '{"x":1}'
XS: dict[str, Any] = {"x": 1}
TOKEN: dict[str, Any] = {"token": "é", "logprob": -0.5, "bytes": [195, 169], **XS}
NO_TOP = answers.TopLogprob(token="x", extra_json='{"logprob":null}')
TOP = answers.TopLogprob(token="é", logprob=-0.5, bytes=b"\xc3\xa9", extra_json=X)
CITATION: dict[str, Any] = {"start_index": 0, "end_index": 9, "url": "u", "title": "t", **XS}

ROWS: dict[str, tuple[dict[str, Any], Message]] = {
    "response": (
        {
            "id": "i",
            "object": "chat.completion",
            "created": 2**40,
            "model": "m",
            "choices": [{}],
            "usage": {},
            "system_fingerprint": "f",
            "service_tier": "t",
            "metadata": {"k": "v"},
            "moderation": {"input": [1.0]},
            "citations": ["c"],
        },
        ChatResponse(
            id="i",
            object="chat.completion",
            created=2**40,
            model="m",
            choices=[answers.Choice()],
            usage=Usage(),
            system_fingerprint="f",
            service_tier="t",
            metadata={"k": "v"},
            moderation_json='{"input":[1.0]}',
            extra_json='{"citations":["c"]}',
        ),
    ),
    "choice": (
        {"index": 1, "message": {}, "finish_reason": "eos", "logprobs": {}, **XS},
        answers.Choice(index=1, message=ChatMessage(), finish_reason="eos", logprobs=answers.Logprobs(), extra_json=X),
    ),
    "an empty finish_reason of a whole response": ({"finish_reason": ""}, answers.Choice(finish_reason="")),
    "message": (
        {
            "role": "assistant",
            "content": "c",
            "name": "n",
            "tool_calls": [{"id": "i"}],
            "tool_call_id": "i",
            "refusal": "r",
            "reasoning_content": "a",
            "reasoning": "b",
            "function_call": {"name": "f"},
            "audio": {"id": "a"},
            "annotations": [{"type": "t"}],
            "reasoning_details": [{"signature": None}],
        },
        ChatMessage(
            role="assistant",
            content="c",
            name="n",
            tool_calls=[messages.ToolCall(id="i")],
            tool_call_id="i",
            refusal="r",
            reasoning_content="a",
            reasoning="b",
            function_call=FunctionCall(name="f"),
            audio=messages.MessageAudio(id="a"),
            annotations=[messages.Annotation(type="t")],
            extra_json='{"reasoning_details":[{"signature":null}]}',
        ),
    ),
    "content, empty": ({"content": ""}, ChatMessage(content="")),
    "content, null": ({"content": None, "role": "assistant"}, ChatMessage(role="assistant")),
    "content, array": (
        {"content": [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]},
        ChatMessage(
            content="ab",
            content_parts=[
                ContentPart(type="text", text="a"),
                ContentPart(type="image_url"),
                ContentPart(type="text", text="b"),
            ],
        ),
    ),
    "content, array without text": (
        {"content": [{"type": "thinking", "thinking": ["t"]}]},
        ChatMessage(content_parts=[ContentPart(type="thinking", extra_json='{"thinking":["t"]}')]),
    ),
    "content, empty array": ({"content": []}, ChatMessage()),
    "content, array of texts": ({"content": ["a"]}, ChatMessage(extra_json='{"content":["a"]}')),
    "text": (
        {"type": "text", "text": "", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m", **XS}, **XS},
        ContentPart(
            type="text",
            text="",
            prompt_cache_breakpoint=messages.PromptCacheBreakpoint(mode="explicit", ttl="30m", extra_json=X),
            extra_json=X,
        ),
    ),
    "image": (
        {"image_url": {"url": "u", "detail": "low", **XS}},
        ContentPart(image_url=messages.ImageUrl(url="u", detail="low", extra_json=X)),
    ),
    "sound": (
        {"input_audio": {"data": "d", "format": "wav", **XS}},
        ContentPart(input_audio=messages.InputAudio(data="d", format="wav", extra_json=X)),
    ),
    "file": (
        {"file": {"filename": "n", "file_data": "d", "file_id": "i", **XS}},
        ContentPart(file=messages.FilePart(filename="n", file_data="d", file_id="i", extra_json=X)),
    ),
    "refusal": ({"refusal": "no"}, ContentPart(refusal="no")),
    "film": ({"video_url": {"url": "u", **XS}}, ContentPart(video_url=messages.MediaUrl(url="u", extra_json=X))),
    "recording": ({"audio_url": {"url": "u"}}, ContentPart(audio_url=messages.MediaUrl(url="u"))),
    "two payloads": ({"text": "t", "refusal": "no"}, ContentPart(text="t", extra_json='{"refusal":"no"}')),
    "tool call": (
        {"id": "i", "type": "function", "function": {"name": "f", "arguments": "{", **XS}, **XS},
        messages.ToolCall(
            id="i", type="function", function=FunctionCall(name="f", arguments="{", extra_json=X), extra_json=X
        ),
    ),
    "custom call": (
        {"custom": {"name": "c", "input": "i", **XS}},
        messages.ToolCall(custom=messages.CustomToolCall(name="c", input="i", extra_json=X)),
    ),
    "arguments, object": ({"arguments": {"a": [1, 1.0]}}, FunctionCall(arguments='{"a":[1,1.0]}')),
    "arguments, array": ({"arguments": []}, FunctionCall(arguments="[]")),
    "arguments, number": ({"arguments": 5}, FunctionCall(extra_json='{"arguments":5}')),
    "spoken": (
        {"id": "a", "expires_at": 2**40, "data": "d", "transcript": "t", **XS},
        messages.MessageAudio(id="a", expires_at=2**40, data="d", transcript="t", extra_json=X),
    ),
    "annotation": (
        {"type": "url_citation", "url_citation": CITATION, **XS},
        messages.Annotation(
            type="url_citation",
            url_citation=messages.UrlCitation(start_index=0, end_index=9, url="u", title="t", extra_json=X),
            extra_json=X,
        ),
    ),
    "chunk": (
        {
            "id": "i",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [{"index": 1, "delta": {}, "finish_reason": "stop", "logprobs": {}, **XS}],
            "usage": {},
            "system_fingerprint": "f",
            "service_tier": "t",
            "obfuscation": "o",
            "moderation": "m",
            **XS,
        },
        ChatChunk(
            id="i",
            object="chat.completion.chunk",
            created=1,
            model="m",
            choices=[
                answers.ChunkChoice(
                    index=1, delta=Delta(), finish_reason="stop", logprobs=answers.Logprobs(), extra_json=X
                )
            ],
            usage=Usage(),
            system_fingerprint="f",
            service_tier="t",
            obfuscation="o",
            moderation_json='"m"',
            extra_json=X,
        ),
    ),
    "delta": (
        {
            "role": "assistant",
            "content": [{"text": "c"}],
            "reasoning_content": "a",
            "reasoning": "b",
            "tool_calls": [{"index": 1, "id": "i", "type": "t", "function": {}, "custom": {}, **XS}],
            "refusal": "r",
            "function_call": {"name": "f", "arguments": {"a": 1}, **XS},
            "audio": {"id": "a", "data": "d", "transcript": "t", "expires_at": 0, **XS},
            "annotations": [{"type": "t"}],
            **XS,
        },
        Delta(
            role="assistant",
            content="c",
            content_parts=[ContentPart(text="c")],
            reasoning_content="a",
            reasoning="b",
            tool_calls=[
                answers.ToolCallDelta(
                    index=1,
                    id="i",
                    type="t",
                    function=answers.FunctionCallDelta(),
                    custom=answers.CustomToolCallDelta(),
                    extra_json=X,
                )
            ],
            refusal="r",
            function_call=answers.FunctionCallDelta(name="f", arguments='{"a":1}', extra_json=X),
            audio=answers.AudioDelta(id="a", data="d", transcript="t", expires_at=0, extra_json=X),
            annotations=[messages.Annotation(type="t")],
            extra_json=X,
        ),
    ),
    "delta, empty names": ({"role": "", "content": ""}, Delta(content="")),
    "tool call delta, empty names": (
        {"id": "", "function": {"name": "", "arguments": ""}},
        answers.ToolCallDelta(function=answers.FunctionCallDelta(arguments="")),
    ),
    "custom call delta": (
        {"name": "c", "input": "", **XS},
        answers.CustomToolCallDelta(name="c", input="", extra_json=X),
    ),
    "custom call delta, empty name": ({"name": ""}, answers.CustomToolCallDelta()),
    "chunk choice, empty finish_reason": ({"finish_reason": ""}, answers.ChunkChoice()),
    "usage": (
        {
            "prompt_tokens": 1,
            "completion_tokens": 2,
            "total_tokens": 3,
            "prompt_tokens_details": {
                "cached_tokens": 0,
                "audio_tokens": 1,
                "text_tokens": 2,
                "image_tokens": 3,
                "cache_write_tokens": 4,
                **XS,
            },
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 1,
                "accepted_prediction_tokens": 2,
                "rejected_prediction_tokens": 3,
                "text_tokens": 4,
                **XS,
            },
            "cost": 0.1,
        },
        Usage(
            prompt_tokens=1,
            completion_tokens=2,
            total_tokens=3,
            prompt_tokens_details=answers.PromptTokensDetails(
                cached_tokens=0, audio_tokens=1, text_tokens=2, image_tokens=3, cache_write_tokens=4, extra_json=X
            ),
            completion_tokens_details=answers.CompletionTokensDetails(
                reasoning_tokens=0,
                audio_tokens=1,
                accepted_prediction_tokens=2,
                rejected_prediction_tokens=3,
                text_tokens=4,
                extra_json=X,
            ),
            extra_json='{"cost":0.1}',
        ),
    ),
    "usage, whole floats": ({"prompt_tokens": 7.0}, Usage(prompt_tokens=7)),
    "usage, null": ({"prompt_tokens": 7, "total_tokens": None}, Usage(prompt_tokens=7)),
    "usage, more than 32 bits, written": (
        {"total_tokens": WrittenNumber(1e30, "1e30")},
        Usage(extra_json='{"total_tokens":1e30}'),
    ),
    "usage, fractions": ({"prompt_tokens": 7.5}, Usage(extra_json='{"prompt_tokens":7.5}')),
    "usage, more than 32 bits": ({"total_tokens": 2**31}, Usage(extra_json='{"total_tokens":2147483648}')),
    "usage, booleans": ({"total_tokens": True}, Usage(extra_json='{"total_tokens":true}')),
    "logprobs": (
        {"content": [{**TOKEN, "top_logprobs": [TOKEN]}], "refusal": [{"token": "r"}], **XS},
        answers.Logprobs(
            content=[TokenLogprob(token="é", logprob=-0.5, bytes=b"\xc3\xa9", top_logprobs=[TOP], extra_json=X)],
            refusal=[TokenLogprob(token="r", extra_json='{"logprob":null}')],
            extra_json=X,
        ),
    ),
    "logprob, whole": ({"logprob": 0, "bytes": []}, TokenLogprob(bytes=b"")),
    "logprob, beyond doubles": ({"logprob": 10**400}, TokenLogprob(extra_json='{"logprob":1' + "0" * 400 + "}")),
    "logprob, between doubles": ({"logprob": 2**53 + 1}, TokenLogprob(extra_json='{"logprob":9007199254740993}')),
    "logprob, written beyond doubles": (
        {"logprob": WrittenNumber(-math.inf, "-1e400")},
        TokenLogprob(extra_json='{"logprob":-1e400}'),
    ),
    "logprob, more digits than a double": (
        {"logprob": WrittenNumber(-0.5, "-0.50000000000000000000")},
        TokenLogprob(logprob=-0.5),
    ),
    "logprob, null": (
        {"token": "H", "logprob": None, "top_logprobs": [{"token": "x", "logprob": None, "bytes": None}]},
        TokenLogprob(token="H", top_logprobs=[NO_TOP], extra_json='{"logprob":null}'),
    ),
    "logprob, missing": (
        {"top_logprobs": [{"token": "x"}]},
        TokenLogprob(top_logprobs=[NO_TOP], extra_json='{"logprob":null}'),
    ),
    "logprob, missing beside others": ({"x": 1}, answers.TopLogprob(extra_json='{"x":1,"logprob":null}')),
    "logprob, text": ({"logprob": "-inf"}, TokenLogprob(extra_json='{"logprob":"-inf"}')),
    "logprob, infinite": ({"logprob": -math.inf}, TokenLogprob(logprob=-math.inf)),
    "bytes, out of range": ({"logprob": 0, "bytes": [256]}, TokenLogprob(extra_json='{"bytes":[256]}')),
    "bytes, null": ({"logprob": 0, "bytes": None}, TokenLogprob()),
    "fractional created": ({"created": 1.5}, ChatResponse(extra_json='{"created":1.5}')),
    "number for logprobs": ({"logprobs": 0.5}, answers.Choice(extra_json='{"logprobs":0.5}')),
    "metadata of numbers": ({"metadata": {"k": 1}}, ChatResponse(extra_json='{"metadata":{"k":1}}')),
    "halves of pairs": (
        {"content": HIGH, "name": HIGH + LOW, "x": LOW},
        ChatMessage(content="\ufffd", name="😀", extra_json=r'{"x":"\ude00"}'),
    ),
    "halves of pairs in a map": ({"metadata": {HIGH: LOW}}, ChatResponse(metadata={"\ufffd": "\ufffd"})),
    "names of fields that are not keys": (
        {"extra_json": "{}", "content_parts": [{}]},
        ChatMessage(extra_json='{"extra_json":"{}","content_parts":[{}]}'),
    ),
}


def read(kind: type[Message], source: dict[str, Any]) -> Any:
    message = kind()
    mapping.read(message, source)
    return message


@pytest.mark.parametrize(("source", "expected"), ROWS.values(), ids=ROWS)
def test_row(source: dict[str, Any], expected: Message) -> None:
    assert read(type(expected), source) == expected


def test_every_field_has_a_row() -> None:
    seen = {name for _, message in ROWS.values() for name in fields_set(message)}
    declared = {f"{kind.DESCRIPTOR.full_name}.{field.name}" for kind in KINDS for field in kind.DESCRIPTOR.fields}
    assert declared - seen == set()


def fields_set(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        yield f"{message.DESCRIPTOR.full_name}.{field.name}"
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for child in value if field.is_repeated else [value]:
                yield from fields_set(child)


KINDS = [
    GetMessageClass(descriptor)
    for file in (messages, answers)
    for descriptor in file.DESCRIPTOR.message_types_by_name.values()
]


def test_a_field_of_a_new_type_is_an_error() -> None:
    with pytest.raises(TypeError, match="have no JSON form"):
        read(chat_request_pb2.StreamOptions, {})
