"""Any content of a response at any level: nothing is lost, and nothing is an error."""

import json
import math
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from chatrpc.v1 import chat_message_pb2, chat_response_pb2
from chatrpc_server.core.errors import ErrorResponse, InvalidResponse, UpstreamFault
from chatrpc_server.core.openai import mapping, responses

KINDS = {
    descriptor.name: GetMessageClass(descriptor)
    for file in (chat_message_pb2, chat_response_pb2)
    for descriptor in file.DESCRIPTOR.message_types_by_name.values()
}
EMPTY = ("", 0, False, [], {}, None)
"""Values that proto3 may not distinguish from absence; the rows of test_mapping.py show where."""


def unread(message: Message) -> dict[str, Any]:
    """Return the JSON that a message was read from, except empty values."""
    out: dict[str, Any] = json.loads(getattr(message, "extra_json", "") or "{}")
    for field, value in message.ListFields():
        name = field.name
        if name == "extra_json" or (name == "content" and getattr(message, "content_parts", ())):
            continue
        key = "content" if name == "content_parts" else name.removesuffix("_json")
        assert key not in out, "a key is in a field and in extra_json"
        if name.endswith("_json"):
            out[key] = json.loads(value)
        elif isinstance(value, bytes):
            out[key] = list(value)
        elif field.message_type is None:
            out[key] = value
        elif field.message_type.GetOptions().map_entry:
            out[key] = dict(value)
        else:
            out[key] = [unread(child) for child in value] if field.is_repeated else unread(value)
    return out


def pruned(value: Any) -> Any:
    """Return the value without empty parts."""
    if isinstance(value, dict):
        return {key: pruned(item) for key, item in value.items() if pruned(item) not in EMPTY}
    return [pruned(item) for item in value] if isinstance(value, list) else value


def keys_of(kind: type[Message]) -> list[str]:
    names = {field.name for field in kind.DESCRIPTOR.fields} - {"content_parts", "extra_json"}
    return sorted(name.removesuffix("_json") for name in names)


VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31 - 1,
    2**31,
    2**63,
    2**64,
    0.0,
    2.0,
    0.5,
    1e300,
    10**400,
    "",
    "a",
]
VALUES += [
    [],
    [1],
    [256],
    [0.5],
    ["a"],
    [None],
    [[]],
    [{}],
    [{"x": 1}],
    [{}, 1],
    {},
    {"a": "b"},
    {"a": 1},
    {"x": {"y": []}},
]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_any_value_of_any_key_is_kept(kind: type[Message]) -> None:
    for key in [*keys_of(kind), "extra_json", "unknown"]:
        for value in VALUES:
            if key == "arguments" and isinstance(value, dict | list):
                continue  # becomes its text
            message = kind()
            mapping.read(message, {key: value})
            assert pruned(unread(message)) == pruned({key: value}), (key, value)


KEYS = sorted({key for kind in KINDS.values() for key in keys_of(kind)} - {"arguments"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.text(max_size=3), values, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS), values, max_size=6)
    ),
    max_leaves=25,
)
ANSWERS = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=8)


@settings(max_examples=300)
@given(st.sampled_from(list(KINDS.values())), ANSWERS)
def test_any_response_is_kept(kind: type[Message], source: dict[str, Any]) -> None:
    message = kind()
    mapping.read(message, source)
    assert pruned(unread(message)) == pruned(source)


NON_FINITE: dict[str, tuple[str, Any]] = {
    "in a field": ('{"logprob":-Infinity}', {"logprob": -math.inf}),
    "as an extra": ('{"x":NaN}', {}),
    "as an extra beside a long integer": ('{"x":NaN,"y":18446744073709551616}', {"y": 2**64}),
}


@pytest.mark.parametrize(("text", "expected"), NON_FINITE.values(), ids=NON_FINITE)
def test_extra_json_is_always_json(text: str, expected: Any) -> None:
    message = chat_response_pb2.TokenLogprob()
    mapping.read(message, json.loads(text))
    assert pruned(unread(message)) == expected


BODIES = {
    "as an extra": '{"x":%,"choices":[]}',
    "as an extra further down": '{"choices":[{"message":{"tool_calls":[{"function":{"x":%}}]}}]}',
    "as text": '{"moderation":%,"choices":[]}',
    "as arguments": '{"choices":[{"message":{"function_call":{"arguments":%}}}]}',
    "as an error": '{"error":{"message":%}}',
}


@pytest.mark.parametrize("depth", [100, 300, 800, 1000, 1020, 1100, 5000])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_any_depth_is_kept_or_rejected(body: str, depth: int) -> None:
    data = body.replace("%", '{"x":' * depth + "1" + "}" * depth).encode()
    reader = responses.StreamReader(100_000)
    reader.feed(b"data: " + data.replace(b"message", b"delta") + b"\n\n")
    fault = None
    try:
        responses.parse_response(data)
    except UpstreamFault as error:
        fault = error
    kept = ErrorResponse if "error" in body else type(None)
    assert isinstance(fault, (kept, InvalidResponse) if depth > 300 else kept)
    assert isinstance(reader.error, (kept, InvalidResponse) if depth > 300 else kept)
    assert depth < 5000 or isinstance(fault, InvalidResponse)


@pytest.mark.parametrize("kind", [chat_response_pb2.Delta, chat_message_pb2.ChatMessage])
def test_a_key_named_as_our_own_field_is_an_extra(kind: type[Message]) -> None:
    """`content_parts` is our own field; the same key of a provider is an extra."""
    message = kind()
    mapping.read(message, {"content_parts": [{"type": "text", "text": "a"}]})
    assert json.loads(message.extra_json) == {"content_parts": [{"type": "text", "text": "a"}]}
    assert not message.content_parts
