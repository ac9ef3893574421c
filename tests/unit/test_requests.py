"""The contract of requests, row by row: message in, JSON text out. Each field of a request must have a row.

test_requests_messages.py has the rows of `messages`, test_requests_invalid.py the invalid requests.
"""

import json
from typing import Any

import pytest
from google.protobuf.message import Message

from chatrpc.v1 import chat_request_pb2
from chatrpc.v1.chat_message_pb2 import ChatMessage, ContentPart
from chatrpc.v1.chat_request_pb2 import (
    AllowedTools,
    AudioOptions,
    CustomToolDefinition,
    FunctionCallChoice,
    FunctionDefinition,
    JsonSchemaFormat,
    ModerationOptions,
    Prediction,
    PromptCacheOptions,
    ResponseFormat,
    StreamOptions,
    Tool,
    ToolChoice,
    UserLocation,
    WebSearchOptions,
)
from chatrpc_server.core.openai import requests
from chatrpc_server.core.openai.usage import NO_USAGE
from chatrpc_server.core.upstream import ChatRequest

X = '{"x":null}'  # an extra key with a value that only extra_json can send
DEEP = '{"anyOf":[' * 30 + '{"minimum": 1, "default":1.0, "maximum":9223372036854775808}' + "]}" * 30

REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "{}"),
    "model": ({"model": "m"}, '{"model":"m"}'),
    "model, empty": ({"model": ""}, "{}"),
    "temperature 0": ({"temperature": 0}, '{"temperature":0}'),
    "temperature 0.7": ({"temperature": 0.7}, '{"temperature":0.7}'),
    "temperature 1": ({"temperature": 1}, '{"temperature":1}'),
    "temperature -0.0": ({"temperature": -0.0}, '{"temperature":0}'),
    "temperature 1e300": ({"temperature": 1e300}, '{"temperature":1e+300}'),
    "the largest exact integer": ({"temperature": 2.0**53 - 1}, '{"temperature":9007199254740991}'),
    "no integer above it": ({"temperature": 2.0**53}, '{"temperature":9007199254740992.0}'),
    "top_p": ({"top_p": 1.0}, '{"top_p":1}'),
    "n": ({"n": 0}, '{"n":0}'),
    "stream options, unary": ({"stream_options": StreamOptions()}, '{"stream_options":{}}'),
    "stream options": (
        {"stream_options": StreamOptions(include_usage=True, include_obfuscation=False, extra_json=X)},
        '{"stream_options":{"include_usage":true,"include_obfuscation":false,"x":null}}',
    ),
    "one stop": ({"stop": ["a"]}, '{"stop":"a"}'),
    "two stops": ({"stop": ["a", "b"]}, '{"stop":["a","b"]}'),
    "no stop": ({"stop": []}, "{}"),
    "max_tokens": ({"max_tokens": 1}, '{"max_tokens":1}'),
    "max_completion_tokens": ({"max_completion_tokens": 2}, '{"max_completion_tokens":2}'),
    "presence_penalty": ({"presence_penalty": -2.0}, '{"presence_penalty":-2}'),
    "frequency_penalty": ({"frequency_penalty": 0.5}, '{"frequency_penalty":0.5}'),
    "logit_bias": ({"logit_bias": {"50256": -100.0}}, '{"logit_bias":{"50256":-100}}'),
    "logit_bias, empty": ({"logit_bias": {}}, "{}"),
    "user": ({"user": ""}, '{"user":""}'),
    "response format": ({"response_format": ResponseFormat(type="text")}, '{"response_format":{"type":"text"}}'),
    "response format by its schema": (
        {"response_format": ResponseFormat(json_schema=JsonSchemaFormat(name="n"))},
        '{"response_format":{"json_schema":{"name":"n"},"type":"json_schema"}}',
    ),
    "response format, all": (
        {
            "response_format": ResponseFormat(
                type="json_schema",
                json_schema=JsonSchemaFormat(name="n", description="d", schema_json="{ }", strict=True, extra_json=X),
                extra_json=X,
            )
        },
        '{"response_format":{"type":"json_schema","json_schema":'
        '{"name":"n","description":"d","schema":{ },"strict":true,"x":null},"x":null}}',
    ),
    "seed": ({"seed": 2**63 - 1}, '{"seed":9223372036854775807}'),
    "tool, all": (
        {
            "tools": [
                Tool(
                    type="function",
                    function=FunctionDefinition(
                        name="f", description="d", parameters_json="{}", strict=False, extra_json=X
                    ),
                    extra_json=X,
                )
            ]
        },
        '{"tools":[{"type":"function","function":'
        '{"name":"f","description":"d","parameters":{},"strict":false,"x":null},"x":null}]}',
    ),
    "a schema is sent byte for byte": (
        {"tools": [Tool(type="function", function=FunctionDefinition(name="f", parameters_json=DEEP))]},
        '{"tools":[{"type":"function","function":{"name":"f","parameters":' + DEEP + "}}]}",
    ),
    "a tool's type by its definition": (
        {"tools": [Tool(function=FunctionDefinition(name="f")), Tool(custom=CustomToolDefinition(name="c"))]},
        '{"tools":[{"function":{"name":"f"},"type":"function"},{"custom":{"name":"c"},"type":"custom"}]}',
    ),
    "custom tool, all": (
        {"tools": [Tool(custom=CustomToolDefinition(name="c", description="d", format_json="{}", extra_json=X))]},
        '{"tools":[{"custom":{"name":"c","description":"d","format":{},"x":null},"type":"custom"}]}',
    ),
    "a provider's own tool": ({"tools": [Tool(extra_json='{"type":"browse"}')]}, '{"tools":[{"type":"browse"}]}'),
    "tools that are strings": ({"extra_json": '{"tools":["browse"]}'}, '{"tools":["browse"]}'),
    "tool choice, none made": ({"tool_choice": ToolChoice()}, "{}"),
    "tool choice, mode": ({"tool_choice": ToolChoice(mode="auto")}, '{"tool_choice":"auto"}'),
    "tool choice, function": (
        {"tool_choice": ToolChoice(function_name="f")},
        '{"tool_choice":{"type":"function","function":{"name":"f"}}}',
    ),
    "tool choice, custom": (
        {"tool_choice": ToolChoice(custom_name="c")},
        '{"tool_choice":{"type":"custom","custom":{"name":"c"}}}',
    ),
    "tool choice, allowed tools": (
        {"tool_choice": ToolChoice(allowed_tools=AllowedTools(mode="auto", tools_json=['{"a": 1}'], extra_json=X))},
        '{"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"a": 1}],"x":null}}}',
    ),
    "tool choice, raw object": ({"tool_choice": ToolChoice(raw_json='{"a": 1}')}, '{"tool_choice":{"a": 1}}'),
    "tool choice, raw string": ({"tool_choice": ToolChoice(raw_json='"any"')}, '{"tool_choice":"any"}'),
    "parallel_tool_calls": ({"parallel_tool_calls": False}, '{"parallel_tool_calls":false}'),
    "logprobs": ({"logprobs": True}, '{"logprobs":true}'),
    "top_logprobs": ({"top_logprobs": 20}, '{"top_logprobs":20}'),
    "reasoning_effort": ({"reasoning_effort": "low"}, '{"reasoning_effort":"low"}'),
    "verbosity": ({"verbosity": "low"}, '{"verbosity":"low"}'),
    "service_tier": ({"service_tier": "flex"}, '{"service_tier":"flex"}'),
    "modalities": ({"modalities": ["text"]}, '{"modalities":["text"]}'),
    "audio": (
        {"audio": AudioOptions(format="wav", voice="alloy", extra_json=X)},
        '{"audio":{"format":"wav","voice":"alloy","x":null}}',
    ),
    "audio, a custom voice": ({"audio": AudioOptions(voice_id="v")}, '{"audio":{"voice":{"id":"v"}}}'),
    "prediction": ({"prediction": Prediction(content="c")}, '{"prediction":{"content":"c","type":"content"}}'),
    "prediction, all": (
        {
            "prediction": Prediction(
                type="t", content="ignored", content_parts=[ContentPart(type="text", text="c")], extra_json=X
            )
        },
        '{"prediction":{"type":"t","content":[{"type":"text","text":"c"}],"x":null}}',
    ),
    "web search, empty": ({"web_search_options": WebSearchOptions()}, '{"web_search_options":{}}'),
    "web search, all": (
        {
            "web_search_options": WebSearchOptions(
                search_context_size="low",
                user_location=UserLocation(type="t", country="US", region="r", city="c", timezone="z", extra_json=X),
                extra_json=X,
            )
        },
        '{"web_search_options":{"search_context_size":"low","user_location":{"type":"t","approximate":'
        '{"country":"US","region":"r","city":"c","timezone":"z","x":null}},"x":null}}',
    ),
    "web search, location without type": (
        {"web_search_options": WebSearchOptions(user_location=UserLocation(country="US"))},
        '{"web_search_options":{"user_location":{"type":"approximate","approximate":{"country":"US"}}}}',
    ),
    "web search, a key of the inner object": (
        {"web_search_options": WebSearchOptions(user_location=UserLocation(type="t", extra_json='{"type":"u"}'))},
        '{"web_search_options":{"user_location":{"type":"t","approximate":{"type":"u"}}}}',
    ),
    "store": ({"store": False}, '{"store":false}'),
    "metadata": ({"metadata": {"k": "v"}}, '{"metadata":{"k":"v"}}'),
    "safety_identifier": ({"safety_identifier": "s"}, '{"safety_identifier":"s"}'),
    "prompt_cache_key": ({"prompt_cache_key": "k"}, '{"prompt_cache_key":"k"}'),
    "prompt_cache_retention": ({"prompt_cache_retention": "24h"}, '{"prompt_cache_retention":"24h"}'),
    "prompt_cache_options": (
        {"prompt_cache_options": PromptCacheOptions(mode="explicit", ttl="30m", extra_json=X)},
        '{"prompt_cache_options":{"mode":"explicit","ttl":"30m","x":null}}',
    ),
    "moderation, all": (
        {"moderation": ModerationOptions(model="m", input_mode="score", output_mode="block", extra_json=X)},
        '{"moderation":{"model":"m","policy":{"input":{"mode":"score"},"output":{"mode":"block"}},"x":null}}',
    ),
    "moderation, output": (
        {"moderation": ModerationOptions(output_mode="block")},
        '{"moderation":{"policy":{"output":{"mode":"block"}}}}',
    ),
    "functions": (
        {"functions": [FunctionDefinition(name="f", parameters_json='{"a":1.0}')]},
        '{"functions":[{"name":"f","parameters":{"a":1.0}}]}',
    ),
    "function call, none chosen": ({"function_call": FunctionCallChoice()}, "{}"),
    "function call, mode": ({"function_call": FunctionCallChoice(mode="auto")}, '{"function_call":"auto"}'),
    "function call, name": ({"function_call": FunctionCallChoice(name="f")}, '{"function_call":{"name":"f"}}'),
    "extra_json": ({"extra_json": ' {"top_k": 1, "thinking": {"a": []}} '}, '{"top_k":1,"thinking":{"a":[]}}'),
    "extra_json, empty object": ({"extra_json": "{}"}, "{}"),
    "extra_json, numbers as written": (
        {"extra_json": '{"a":1e400,"b":[-1e-999,1234567890123456789012],"c":{"d":0.1234567890123456789}}'},
        '{"a":1e400,"b":[-1e-999,1234567890123456789012],"c":{"d":0.1234567890123456789}}',
    ),
    "extra_json, an explicit null": ({"extra_json": '{"stop":null}'}, '{"stop":null}'),
    "extra_json, 64 bits": ({"extra_json": '{"x":18446744073709551615}'}, '{"x":18446744073709551615}'),
    "extra_json, more bits": ({"extra_json": '{"x":100000000000000000000}'}, '{"x":100000000000000000000}'),
    "extra_json, doubles stay doubles": ({"extra_json": '{"x":[1.0,-0.0]}'}, '{"x":[1.0,-0.0]}'),
    "extra_json, half a pair": ({"extra_json": r'{"x":"\ud83d"}'}, r'{"x":"\ud83d"}'),
}


def a_request(**fields: Any) -> ChatRequest:
    return ChatRequest(messages=[ChatMessage(role="user")], **fields)


def sent(request: ChatRequest, *, stream: bool = False) -> str:
    body = requests.stream_body(request, NO_USAGE) if stream else requests.unary_body(request)
    return body.decode()


@pytest.mark.parametrize(("fields", "expected"), REQUESTS.values(), ids=REQUESTS)
def test_request(fields: dict[str, Any], expected: str) -> None:
    model, rest = (expected[1:12], expected[12:]) if expected.startswith('{"model":') else ("", expected[1:])
    frame = "{" + model + ("," if model else "") + '"messages":[{"role":"user"}]'
    assert sent(a_request(**fields)) == frame + (rest if rest.startswith("}") else "," + rest)


def test_every_field_has_a_row() -> None:
    seen = {"chatrpc.v1.CreateChatCompletionRequest.stream"}  # test_stream_key has its rows
    for fields, _ in REQUESTS.values():
        seen |= fields_set(a_request(**fields))
    declared = chat_request_pb2.DESCRIPTOR.message_types_by_name.values()
    assert {field.full_name for message in declared for field in message.fields} - seen == set()


def fields_set(message: Message) -> set[str]:
    names = set()
    for field, value in message.ListFields():
        names.add(field.full_name)
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for child in value if field.is_repeated else [value]:
                names |= fields_set(child)
    return names


@pytest.mark.parametrize(
    ("stream", "fields", "expected"),
    [
        pytest.param(False, {}, {}, id="unary"),
        pytest.param(False, {"stream": False}, {}, id="unary, explicit"),
        pytest.param(True, {}, {"stream": True}, id="stream"),
        pytest.param(True, {"stream": True}, {"stream": True}, id="stream, explicit"),
    ],
)
def test_stream_key(stream: bool, fields: dict[str, Any], expected: Any) -> None:
    out = json.loads(sent(a_request(**fields), stream=stream))
    assert out == {"messages": [{"role": "user"}], **expected}
