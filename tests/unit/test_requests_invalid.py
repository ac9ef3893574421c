"""Requests that cannot be sent: each error names the invalid field and the accepted values."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from chatrpc.v1.chat_message_pb2 import Annotation, ChatMessage, ContentPart, FunctionCall, MessageAudio, ToolCall
from chatrpc.v1.chat_request_pb2 import (
    AllowedTools,
    AudioOptions,
    FunctionDefinition,
    ModerationOptions,
    Prediction,
    StreamOptions,
    Tool,
    ToolChoice,
    UserLocation,
    WebSearchOptions,
)
from chatrpc_server.core.errors import InvalidRequest, Reason
from chatrpc_server.core.openai import jsontext, requests
from chatrpc_server.core.openai.usage import NO_USAGE
from chatrpc_server.core.upstream import ChatRequest

NAN, INFINITE = float("nan"), float("inf")


def a_request(**fields: Any) -> ChatRequest:
    return ChatRequest(messages=[ChatMessage(role="user")], **fields)


def said(**fields: Any) -> ChatRequest:
    return ChatRequest(messages=[ChatMessage(role="user"), ChatMessage(**{"role": "assistant", **fields})])


def rejection(request: ChatRequest, *, stream: bool = False) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        requests.stream_body(request, NO_USAGE) if stream else requests.unary_body(request)
    return caught.value


TWICE = 'sets "{}", which a field of this message also sets; set only one'
OWN = 'must not set "{0}"; use the field {0}'
MISTAKES: dict[str, tuple[ChatRequest, str, str]] = {
    "no messages": (ChatRequest(model="m"), "messages", "is empty; add at least one message"),
    "no role": (said(role=""), "messages[1].role", "use a role such as user, system or assistant"),
    "NaN": (a_request(temperature=NAN), "temperature", "is nan; JSON allows only finite numbers"),
    "infinite": (a_request(top_p=-INFINITE), "top_p", "is -inf; JSON allows only finite numbers"),
    "NaN in a map": (a_request(logit_bias={"5": NAN}), 'logit_bias["5"]', "is nan; JSON allows only finite numbers"),
    "a long key": (a_request(logit_bias={"é" * 9999: NAN}), f'logit_bias["{"é" * 64}"]', "only finite numbers"),
    "not JSON": (a_request(extra_json="{"), "extra_json", "use the text of an object"),
    "blank": (a_request(extra_json=" "), "extra_json", "is not JSON (Expecting value: line 1 column 2 (char 1))"),
    "array": (a_request(extra_json="[]"), "extra_json", "is an array in JSON; use an object"),
    "string": (a_request(extra_json='"{}"'), "extra_json", "is a string in JSON; use an object"),
    "number": (a_request(extra_json="1"), "extra_json", "is a number in JSON; use an object"),
    "fraction": (a_request(extra_json="1.5"), "extra_json", "is a number in JSON; use an object"),
    "boolean": (a_request(extra_json="true"), "extra_json", "is a boolean in JSON; use an object"),
    "null": (a_request(extra_json="null"), "extra_json", "is null in JSON; use an object"),
    "extra NaN": (a_request(extra_json='{"x":NaN}'), "extra_json", "NaN is not a JSON value"),
    "extra infinity": (a_request(extra_json='{"x":-Infinity}'), "extra_json", "-Infinity is not a JSON value"),
    "too deep": (a_request(extra_json='{"x":' + "[" * 9999 + "]" * 9999 + "}"), "extra_json", "nested too deeply"),
    "model": (a_request(extra_json='{"model":"m"}'), "extra_json", OWN.format("model")),
    "messages": (a_request(extra_json='{"messages":[]}'), "extra_json", OWN.format("messages")),
    "stream": (a_request(extra_json='{"stream":null}'), "extra_json", OWN.format("stream")),
    "twice": (a_request(n=1, extra_json='{"n":1}'), "extra_json", TWICE.format("n")),
    "twice, in an object": (
        a_request(stream_options=StreamOptions(include_usage=True, extra_json='{"include_usage":false}')),
        "stream_options.extra_json",
        TWICE.format("include_usage"),
    ),
    "twice, content": (
        said(content_parts=[ContentPart(text="t")], extra_json='{"content":"t"}'),
        "messages[1].extra_json",
        TWICE.format("content"),
    ),
    "twice, a type that follows": (
        said(content_parts=[ContentPart(), ContentPart(text="t", extra_json='{"type":"x"}')]),
        "messages[1].content_parts[1].extra_json",
        TWICE.format("type"),
    ),
    "twice, arguments that were empty": (
        said(tool_calls=[ToolCall(function=FunctionCall(name="f", extra_json='{"arguments":{}}'))]),
        "messages[1].tool_calls[0].function.extra_json",
        TWICE.format("arguments"),
    ),
    "twice, voice": (
        a_request(audio=AudioOptions(voice_id="v", extra_json='{"voice":"alloy"}')),
        "audio.extra_json",
        TWICE.format("voice"),
    ),
    "twice, policy": (
        a_request(moderation=ModerationOptions(input_mode="score", extra_json='{"policy":{}}')),
        "moderation.extra_json",
        TWICE.format("policy"),
    ),
    "twice, the type of a prediction": (
        a_request(prediction=Prediction(extra_json='{"type":"x"}')),
        "prediction.extra_json",
        TWICE.format("type"),
    ),
    "twice, inside a location": (
        a_request(web_search_options=WebSearchOptions(user_location=UserLocation(city="c", extra_json='{"city":1}'))),
        "web_search_options.user_location.extra_json",
        TWICE.format("city"),
    ),
    "schema, no object": (
        a_request(tools=[Tool(function=FunctionDefinition(parameters_json="[]"))]),
        "tools[0].function.parameters_json",
        "is an array in JSON; use an object",
    ),
    "schema, empty text": (
        a_request(functions=[FunctionDefinition(), FunctionDefinition(parameters_json="")]),
        "functions[1].parameters_json",
        "is not JSON",
    ),
    "raw choice, a number": (
        a_request(tool_choice=ToolChoice(raw_json="1")),
        "tool_choice.raw_json",
        "is a number in JSON; use an object or a string",
    ),
    "raw choice, bare word": (
        a_request(tool_choice=ToolChoice(raw_json="auto")),
        "tool_choice.raw_json",
        "use the text of an object or a string",
    ),
    "allowed tools": (
        a_request(tool_choice=ToolChoice(allowed_tools=AllowedTools(tools_json=["{}", '"f"']))),
        "tool_choice.allowed_tools.tools_json[1]",
        "is a string in JSON; use an object",
    ),
}


@pytest.mark.parametrize(("request_", "field", "description"), MISTAKES.values(), ids=MISTAKES)
def test_mistake(request_: ChatRequest, field: str, description: str) -> None:
    error = rejection(request_)
    assert error.field == field
    assert description in error.description
    assert str(error) == error.message == f"{field}: {error.description}"
    assert error.reason is Reason.INVALID_REQUEST


@pytest.mark.parametrize(
    ("stream", "description"),
    [
        (True, "is false, but this RPC determines it; leave it unset or call CreateChatCompletion"),
        (False, "is true, but this RPC determines it; leave it unset or call CreateChatCompletionStream"),
    ],
)
def test_stream_contradicts_the_rpc(stream: bool, description: str) -> None:
    error = rejection(a_request(stream=not stream), stream=stream)
    assert (error.field, error.description) == ("stream", description)


def places(descriptor: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Descriptor]]:
    """Yield the path and type of every object inside a request."""
    yield path, descriptor
    for field in descriptor.fields:
        child = field.message_type
        if child is not None and not child.GetOptions().map_entry and field.full_name not in RESPONSE_ONLY:
            yield from places(child, (*path, field.name))


RESPONSE_ONLY = {f"chatrpc.v1.ChatMessage.{name}" for name in ("annotations", "audio")}
TEXTS = [
    pytest.param((*path, field.name), id=".".join((*path, field.name)))
    for path, descriptor in places(ChatRequest.DESCRIPTOR)
    for field in descriptor.fields
    if field.name.endswith("_json")
]


@pytest.mark.parametrize("text", ["[]", "{"])
@pytest.mark.parametrize("path", TEXTS)
def test_every_json_text_is_checked(path: tuple[str, ...], text: str) -> None:
    request, message, expected = a_request(), None, []
    message = request
    for name in path[:-1]:
        value = getattr(message, name)
        repeated = message.DESCRIPTOR.fields_by_name[name].is_repeated
        if repeated and not len(value):
            value.add()
        message = value[0] if repeated else value
        expected.append(name + "[0]" * repeated)
    if message.DESCRIPTOR.fields_by_name[path[-1]].is_repeated:
        getattr(message, path[-1]).append(text)
        expected.append(path[-1] + "[0]")
    else:
        setattr(message, path[-1], text)
        expected.append(path[-1])
    assert rejection(request).field == ".".join(expected)


def test_fields_that_are_not_sent_are_not_checked() -> None:
    message = said(annotations=[Annotation(extra_json="{")], audio=MessageAudio(id="a", extra_json="{"))
    assert b'"audio":{"id":"a"}' in requests.unary_body(message)


@pytest.mark.parametrize("extra", ["{}", '{"x":100000000000000000000}'], ids=["fast", "slow"])
def test_any_depth_is_sent_or_rejected(extra: str) -> None:
    outcomes = set()
    for depth in [60, 300, *range(900, 1000), 9000]:
        text = '{"a":' * depth + "1" + "}" * depth
        try:
            request = a_request(tool_choice=ToolChoice(raw_json=text), extra_json=extra)
            outcomes.add(text.encode() in requests.unary_body(request))
        except InvalidRequest as error:
            outcomes.add("nested too deeply" in error.description and "refused")
    assert outcomes == {True, "refused"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_extra_json_is_sent_unchanged_or_rejected(extras: dict[str, Any]) -> None:
    taken = {"model", "messages", "stream"} & extras.keys()
    request = a_request(extra_json=json.dumps(extras))
    if taken:
        assert rejection(request).field == "extra_json"
    else:
        out = json.loads(requests.unary_body(request))
        assert out == {"messages": [{"role": "user"}], **extras}


def test_json_text_with_too_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsontext, "MAX_CALLER_VALUES", 10_000)
    text = json.dumps({"a": [[]] * 40_000})
    with pytest.raises(InvalidRequest) as raised:
        requests.unary_body(said(extra_json=text))
    assert raised.value.message == (
        "messages[1].extra_json: is too large: it has 80001 commas and opening brackets; the limit is 10000;"
        " send fewer values"
    )


def test_json_text_that_a_parser_reads_but_no_writer_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since Python 3.12 the parser accepts more levels than the stack of Python code."""
    value: Any = 2**64
    for _ in range(2000):
        value = [value]
    monkeypatch.setattr(jsontext, "loads_exactly", lambda _: {"a": value})
    assert rejection(a_request(extra_json="{}")).message == "extra_json: is nested too deeply; use fewer levels"
    large = " " * 10_000
    assert rejection(a_request(extra_json=large)).message == "extra_json: is nested too deeply; use fewer levels"
