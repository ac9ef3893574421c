"""Any valid request through `core.openai.requests` to JSON and back by the client's `requests` is the same request.

`as_sent` lists all permitted differences. A model's response returns to it unchanged in the next request.
"""

import copy
import json
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc_client.requests import from_json
from chatrpc_server.core.openai import requests, responses
from chatrpc_server.core.openai.usage import StreamUsage
from chatrpc_server.core.upstream import ChatRequest

# Any request.

ANY_TEXT = st.text(st.characters(), max_size=5)  # with halves of surrogate pairs, because JSON texts may hold them
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | ANY_TEXT,
    lambda values: st.lists(values, max_size=2) | st.dictionaries(ANY_TEXT, values, max_size=2),
    max_leaves=4,
)
OBJECTS = st.dictionaries(ANY_TEXT, VALUES, max_size=2)
OBJECT_TEXTS = OBJECTS.map(lambda value: json.dumps(value, indent=1))
FIELDS_OF_ANOTHER = st.sampled_from(["x", "type", "approximate", "input", "content_parts", "extra_json", "schema_json"])
FITS_NOWHERE = st.sampled_from([None, [[]]])

SCALARS: dict[int, Any] = {
    FieldDescriptor.TYPE_STRING: st.text(max_size=5),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-3, 3).map(float)
    | st.sampled_from([0.7, 2.0**53, -(2.0**53) - 2]),
}
OVERRIDES: dict[str, Any] = {
    "ChatMessage.role": st.text(min_size=1, max_size=5),
    "ToolChoice.raw_json": (OBJECTS | st.text(max_size=5)).map(json.dumps),
    # Never read, because it is never sent.
    "MessageAudio.extra_json": st.text(max_size=5),
    "Annotation.extra_json": st.text(max_size=5),
    "UrlCitation.extra_json": st.text(max_size=5),
}
REQUIRED = {"CreateChatCompletionRequest": {"messages"}, "ChatMessage": {"role"}}
SKIPPED = {"CreateChatCompletionRequest.stream"}  # it contradicts one of the RPCs

KEYS = {
    "ChatMessage.content_parts": "content",
    "Prediction.content_parts": "content",
    "AudioOptions.voice_id": "voice",
    "ModerationOptions.input_mode": "policy",
    "ModerationOptions.output_mode": "policy",
    "UserLocation.type": "",  # beside the object of the others
}
ALWAYS_SENT = {"FunctionCall": {"name", "arguments"}, "CustomToolCall": {"name", "input"}}
DERIVED_TYPES = {
    "ContentPart": ("text", "image_url", "input_audio", "file", "refusal", "video_url", "audio_url"),
    "Tool": ("function", "custom"),
    "ToolCall": ("function", "custom"),
    "ResponseFormat": ("json_schema",),
}
DEFAULT_TYPES = {"Prediction": "content", "UserLocation": "approximate"}


@st.composite
def messages(draw: Any, kind: Descriptor, *wanted: str) -> Any:
    """Draw a message of this type with some of its fields, the required ones included."""
    fields = [field for field in kind.fields if f"{kind.name}.{field.name}" not in SKIPPED]
    names = draw(st.sets(st.sampled_from([field.name for field in fields]), max_size=5))
    names |= REQUIRED.get(kind.name, set()) | set(wanted)
    for oneof in kind.oneofs:
        several = [field.name for field in oneof.fields if field.name in names]
        names -= set(several) - {several[-1]} if several else set()
    message = GetMessageClass(kind)(
        **{field.name: draw(value_of(field)) for field in fields if field.name in names - {"extra_json"}}
    )
    if "extra_json" in names:
        path = f"{kind.name}.extra_json"
        message.extra_json = draw(OVERRIDES[path] if path in OVERRIDES else extras(message))
    return message


def value_of(field: FieldDescriptor) -> Any:
    """Draw any value of a field."""
    path = f"{field.containing_type.name}.{field.name}"
    least = path == "CreateChatCompletionRequest.messages"
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.dictionaries(
            st.text(max_size=5), SCALARS[field.message_type.fields_by_name["value"].type], max_size=2
        )
    if field.message_type is not None:
        values = messages(field.message_type)
    elif path in OVERRIDES:
        values = OVERRIDES[path]
    else:
        values = OBJECT_TEXTS if field.name.endswith("_json") else SCALARS[field.type]
    return st.lists(values, min_size=least, max_size=2) if field.is_repeated else values


def extras(message: Message) -> Any:
    """Draw extra keys of an object: unknown ones, and unset known ones with values that fit no field."""
    kind = message.DESCRIPTOR
    key_of = {
        field.name: KEYS.get(f"{kind.name}.{field.name}", field.name.removesuffix("_json")) for field in kind.fields
    }
    known = {*key_of.values()} - {"", "extra"}
    taken = {key_of[field.name] for field, _ in message.ListFields()} | ALWAYS_SENT.get(kind.name, set())
    if any(message.HasField(name) for name in DERIVED_TYPES.get(kind.name, ())) or kind.name == "Prediction":
        taken.add("type")
    if isinstance(message, ChatRequest):
        taken |= {"model", "messages", "stream"}
    unknown = st.dictionaries(
        (FIELDS_OF_ANOTHER | ANY_TEXT).filter(lambda key: key not in known | taken), VALUES, max_size=2
    )
    if not known - taken:
        return unknown.map(json.dumps)
    unset = st.dictionaries(st.sampled_from(sorted(known - taken)), FITS_NOWHERE, max_size=2)
    return st.builds(lambda one, two: json.dumps({**one, **two}), unknown, unset)


# The expected form of a sent request.


def as_sent(message: Any, *, stream: bool = False) -> Any:
    """Return the message as it must return, with all permitted differences applied."""
    message = copy.deepcopy(message)
    if stream and "stream_options" not in json.loads(message.extra_json or "{}"):
        options = message.stream_options
        options.include_usage = True  # it is always requested
        kept = {key: value for key, value in json.loads(options.extra_json or "{}").items() if key != "include_usage"}
        options.extra_json = json.dumps(kept)
    _normalise(message)
    return message


def _normalise(message: Any) -> None:
    name = message.DESCRIPTOR.name
    if name == "ChatMessage":  # keys that only responses have
        message.ClearField("annotations")
        if message.HasField("audio"):
            message.audio.CopyFrom(type(message.audio)(id=message.audio.id))
        if message.extra_json:
            kept = {key: value for key, value in json.loads(message.extra_json).items() if key != "annotations"}
            message.extra_json = json.dumps(kept)
    if getattr(message, "content_parts", ()) and name in ("ChatMessage", "Prediction"):
        message.ClearField("content")  # it is only a view of the parts
    if "type" in message.DESCRIPTOR.fields_by_name and not message.type:
        types = [field for field in DERIVED_TYPES.get(name, ()) if message.HasField(field)]
        message.type = (types or [DEFAULT_TYPES.get(name, "")])[0]
    if name == "ToolChoice" and message.raw_json.startswith('"'):
        message.mode = json.loads(message.raw_json)  # both have the same JSON
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_DOUBLE:
            setattr(message, field.name, value + 0.0)  # -0 is 0
        elif field.name.endswith("_json"):  # compared by value, in order; an empty object is none
            texts = [json.dumps(json.loads(text)) for text in (value if field.is_repeated else [value])]
            if field.is_repeated:
                value[:] = texts
            elif field.name == "extra_json" and texts == ["{}"]:
                message.ClearField(field.name)
            else:
                setattr(message, field.name, texts[0])
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in value:
                value[key] += 0.0 if isinstance(value[key], float) else ""
        elif field.message_type is not None:
            if field.message_type.name in ("ToolChoice", "FunctionCallChoice") and not value.WhichOneof("choice"):
                message.ClearField(field.name)  # no choice is made
                continue
            for child in value if field.is_repeated else [value]:
                _normalise(child)


REQUEST = ChatRequest.DESCRIPTOR
FIELDS = [field.name for field in REQUEST.fields if field.name != "stream"]


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("field", FIELDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_request_returns(field: str, stream: bool, data: st.DataObject) -> None:
    request = data.draw(messages(REQUEST, field))
    before = copy.deepcopy(request)
    body = requests.stream_body(request, StreamUsage(is_requested=True)) if stream else requests.unary_body(request)
    received = from_json(json.loads(body))
    assert received.stream == stream
    received.ClearField("stream")
    assert received == as_sent(request, stream=stream)
    assert request == before


# A model's response, in the next request.

WHOLE = "as it came"
ANSWERS: dict[str, tuple[dict[str, Any], Any]] = {
    # name: (the message of the response, the message of the next request)
    "text": ({"content": "4", "refusal": None, "tool_calls": None}, {"content": "4"}),
    "refusal": ({"content": None, "refusal": "no"}, {"refusal": "no"}),
    "reasoning of DeepSeek": ({"content": "4", "reasoning_content": "2+2"}, WHOLE),
    "reasoning of vLLM": ({"content": "4", "reasoning": "2+2"}, WHOLE),
    "reasoning details": (
        {
            "content": "",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "2+2", "signature": None, "index": 0},
                {"type": "reasoning.encrypted", "data": "Cg==", "id": "r", "index": 1},
            ],
        },
        WHOLE,
    ),
    "thought signatures": (
        {
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "f", "arguments": "{ }"},
                    "extra_content": {"google": {"thought_signature": "Cg+/=="}},
                },
                {"id": "t2", "type": "custom", "custom": {"name": "g", "input": "x"}},
            ]
        },
        WHOLE,
    ),
    "arguments that are not text": (
        {"tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]},
    ),
    "no arguments": (
        {"tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": None}}]},
        {"tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": ""}}]},
    ),
    "the index of a call": (
        {
            "content": None,
            "tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    ),
    "a number as arguments": (
        {"tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": 5}}]},
        WHOLE,
    ),
    "keys of the choice": (
        {"content": "4", "logprobs": {"content": []}, "finish_reason": "stop", "index": 0},
        {"content": "4"},
    ),
    "long numbers": (
        {"content": "4", "x": [1e300, 12345678901234567890, 2**70]},
        WHOLE,
    ),
    "parts": (
        {"content": [{"type": "thinking", "thinking": [{"a": 1.0}]}, {"type": "text", "text": "4", "x": 2**70}]},
        WHOLE,
    ),
    "half an emoji": ({"content": "a\ud83d", "x": "\ud83d"}, {"content": "a\ufffd", "x": "\ud83d"}),
    "audio": (
        {"content": None, "audio": {"id": "a", "data": "AA==", "expires_at": 1, "transcript": "4", "x": 1}},
        {"audio": {"id": "a"}},
    ),
    "annotations": (
        {
            "content": "4",
            "annotations": [{"type": "url_citation", "url_citation": {"url": "https://a.example", "x": 1}}],
        },
        {"content": "4"},
    ),
    "annotations of another kind": ({"content": "4", "annotations": {"x": 1}}, {"content": "4"}),
    "a legacy function call": ({"content": "", "function_call": {"name": "f", "arguments": "{"}}, WHOLE),
    "odd types": ({"content": 5, "name": ["n"], "refusal": {}, "tool_calls": {"x": 1}}, WHOLE),
    "unknown keys": (
        {"content": "4", "images": [{"image_url": {"url": "u"}}], "prefix": True, "x": None},
        {"content": "4", "images": [{"image_url": {"url": "u"}}], "prefix": True},
    ),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("said", "back"), ANSWERS.values(), ids=ANSWERS)
def test_a_response_returns_to_the_model(said: dict[str, Any], back: Any, streamed: bool) -> None:
    said = {"role": "assistant", **said}
    if streamed:
        events = [{"choices": [{"delta": {key: value}}]} for key, value in said.items()]
        body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
        answer = responses.parse_streamed_response(body, 10_000)
    else:
        answer = responses.parse_response(json.dumps({"choices": [{"message": said}]}).encode())
    request = ChatRequest(messages=[ChatMessage(role="user", content="2+2?"), answer.choices[0].message])
    sent = json.loads(requests.unary_body(request))["messages"][1]
    assert sent == {"role": "assistant", "content": None, **(said if back == WHOLE else back)}
