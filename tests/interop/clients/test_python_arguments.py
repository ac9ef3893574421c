"""The arguments of clients/python: those of a client, and the request message that those of a call become."""

import json
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import grpc
import pytest

from chatrpc.v1.chat_message_pb2 import ChatMessage, FunctionCall, ToolCall
from chatrpc_client import AsyncClient, Client
from chatrpc_client import requests as client_requests
from chatrpc_server.core.openai import requests as service_requests
from support import Service

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello!"}]

INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "messages is a text": ({"messages": "Hello!"}, "messages: .*use a list"),
    "a message is a text": ({"messages": ["Hello!"]}, r"messages\[0\]: str is invalid; use a dict or a ChatMessage"),
    "model is none": ({"model": None}, "model: NoneType is invalid; use the model's name"),
    "no JSON": ({"top_k": {1, 2}}, "top_k: .*JSON"),
    "no JSON in a message": ({"messages": [{"role": "user", "x": b""}]}, r"messages\[0\].x: .*JSON"),
    "not a number": ({"x": float("nan")}, "x: .*JSON"),
    "a parameter twice": (
        {"temperature": 1, "extra_body": {"temperature": 1}},
        "extra_body: temperature is a parameter too",
    ),
    "messages twice": ({"extra_body": {"messages": HELLO}}, "extra_body: messages is a parameter too"),
    "a query": ({"extra_query": {"a": "b"}}, "extra_query: gRPC has no URL"),
    "no JSON in a tool": (
        {"tools": [{"function": {"name": "f", "parameters": {"x": float("inf")}}}]},
        r"tools\[0\].function.parameters: .*JSON",
    ),
    "extra_body is a list": ({"extra_body": []}, ""),
    "extra_body is a text": ({"extra_body": "x"}, "extra_body: str is invalid; use a dict"),
}


@pytest.mark.parametrize(("arguments", "message"), INVALID.values(), ids=INVALID)
def test_invalid_arguments_are_reported(arguments: dict[str, Any], message: str) -> None:
    given = {"model": "echo", "messages": HELLO, **arguments}
    model, messages = given.pop("model"), given.pop("messages")
    if not message:
        assert client_requests.build_request(model, messages, given)
        return
    with pytest.raises(TypeError, match=message):
        client_requests.build_request(model, messages, given)


class Role(StrEnum):
    USER = "user"


TOOL_CALL = ToolCall(id="1", function=FunctionCall(name="f", arguments="{}"))
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an enum": ({"role": Role.USER, "content": "?"}, {"role": "user", "content": "?"}),
    "an enum of a part": (
        {"role": "user", "content": [{"type": StrEnum("Kind", {"TEXT": "text"}).TEXT, "text": "?"}]},  # type: ignore[attr-defined]
        {"role": "user", "content": [{"type": "text", "text": "?"}]},
    ),
    "tool calls of a response": (
        {"role": "assistant", "tool_calls": ChatMessage(role="assistant", tool_calls=[TOOL_CALL]).tool_calls},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
    ),
    "a part with two payloads": (
        {"role": "user", "content": [{"refusal": "", "type": "text", "text": "?"}]},
        {"role": "user", "content": [{"refusal": "", "type": "text", "text": "?"}]},
    ),
    "half a surrogate pair": ({"role": "user", "content": "\ud83d"}, {"role": "user", "content": "\ud83d"}),
    "a mapping": (
        {"role": "user", "content": "?", "x": MappingProxyType({"y": (1, 2)})},
        {"role": "user", "content": "?", "x": {"y": [1, 2]}},
    ),
    "null": ({"role": "user", "content": "?", "name": None}, {"role": "user", "content": "?", "name": None}),
}


@pytest.mark.parametrize(("given", "sent"), SAME.values(), ids=SAME)
def test_messages_arrive_unchanged(given: dict[str, Any], sent: dict[str, Any]) -> None:
    request = client_requests.build_request("m", [given], {"temperature": 10**400})
    body = json.loads(service_requests.unary_body(request))
    assert body == {"model": "m", "messages": [sent], "temperature": 10**400}


def test_the_type_selects_one_of_two_payloads() -> None:
    part = {"image_url": {"url": "https://pictures.test/1"}, "type": "text", "text": "?"}
    request = client_requests.build_request("m", [{"role": "user", "content": [part]}], {})
    assert request.messages[0].content_parts[0].text == "?"


ARGUMENTS: dict[str, tuple[Any, Any]] = {
    "text": ('{"a":  1}', '{"a":  1}'),
    "object": ({"a": {"é": [1, 12345678901234567890, 0.5]}}, '{"a": {"é": [1, 12345678901234567890, 0.5]}}'),
    "empty object": ({}, "{}"),
    "mapping": (MappingProxyType({"a": (1,)}), '{"a": [1]}'),
    "array": ([1], "[1]"),
    "none": (None, ""),
    "half a surrogate pair": ({"a": "\ud83d"}, r'{"a": "\ud83d"}'),
    "number": (5, 5),
}


@pytest.mark.parametrize(("given", "sent"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_arrive_as_text(given: Any, sent: Any) -> None:
    function = {"name": "f", "arguments": given}
    message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "function": function}],
        "function_call": function,
    }
    body = json.loads(service_requests.unary_body(client_requests.build_request("m", [message], {})))
    (received,) = body["messages"]
    assert [received["tool_calls"][0]["function"]["arguments"], received["function_call"]["arguments"]] == [sent] * 2


def test_arguments_that_are_no_json_are_reported() -> None:
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": float("nan")}}}]}
    with pytest.raises(TypeError, match=r"messages\[0\].tool_calls\[0\].function.arguments: .*JSON"):
        client_requests.build_request("m", [message], {})


def test_integers_that_a_double_would_round_arrive_unchanged() -> None:
    given = {"temperature": 2**53 + 1, "top_p": -(2**53), "logit_bias": {"5": 2**60 + 1}}
    body = json.loads(service_requests.unary_body(client_requests.build_request("m", HELLO, given)))
    assert {key: body[key] for key in given} == given


MISFITS = {
    "max_tokens": True,
    "temperature": True,
    "logprobs": 1,
    "seed": "1",
    "tool_choice": "\ud83d",
    "user": ["\ud83d"],
}


def test_values_that_fit_no_field_arrive_unchanged() -> None:
    request = client_requests.build_request("m", HELLO, MISFITS)
    body = json.loads(service_requests.unary_body(request))
    assert {key: (type(body[key]), body[key]) for key in MISFITS} == {
        key: (type(MISFITS[key]), MISFITS[key]) for key in MISFITS
    }


FUNCTION = {"type": "function", "function": {"name": "f"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [FUNCTION]}}


@pytest.mark.parametrize("choice", ["auto", FUNCTION, ALLOWED, {"type": "another", "x": 1}, 5])
@pytest.mark.parametrize("convert", [lambda value: value, lambda value: MappingProxyType(dict(value))])
def test_a_tool_choice_arrives_in_every_form(choice: Any, convert: Any) -> None:
    given = convert(choice) if isinstance(choice, dict) else choice
    request = client_requests.build_request("m", HELLO, {"tool_choice": given})
    body = json.loads(service_requests.unary_body(request))
    assert body["tool_choice"] == choice


async def test_target_and_key_from_the_environment(chat: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATRPC_TARGET", str(chat.server.address))
    monkeypatch.setenv("CHATRPC_API_KEY", "from-the-environment")
    async with AsyncClient(timeout=5) as client:
        assert await client.complete(model="echo", messages=HELLO)
        assert ("authorization", "Bearer from-the-environment") in client._defaults.options(None, None)["metadata"]
    with Client(api_key="given") as other:
        assert other._defaults.options(None, None)["metadata"] == [("authorization", "Bearer given")]
    with Client(api_key="") as anonymous:
        assert anonymous._defaults.options(None, None)["metadata"] == []


@pytest.mark.parametrize("key", ["secret\n", "sécret"])
def test_an_invalid_key_is_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="cannot carry") as raised:
        Client(api_key=key)
    assert key.strip() not in str(raised.value)


@pytest.mark.parametrize("headers", [{"x-a": "b\n"}, {"x-a": "é"}, {"x a": "b"}])
def test_an_invalid_header_is_reported(headers: dict[str, str]) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ValueError, match="cannot carry"):
        client.complete(model="echo", messages=HELLO, extra_headers=headers)


def test_a_call_can_replace_the_authorization() -> None:
    with Client(api_key="ours") as client:
        metadata = client._defaults.options(None, {"Authorization": "Bearer mine"})["metadata"]
    assert metadata == [("authorization", "Bearer mine")]


@pytest.mark.parametrize("target", ["http://127.0.0.1:50051", "https://a:1", "grpc://a:1"])
def test_a_url_is_no_target(target: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        Client(target)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_timeout_must_be_positive_and_finite(timeout: float) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ValueError, match="more than 0 and finite"):
        client.complete(model="echo", messages=HELLO, timeout=timeout)


async def test_a_deadline_can_be_far_away(chat: Service) -> None:
    async with AsyncClient(str(chat.server.address)) as client:
        assert await client.complete(model="echo", messages=HELLO, timeout=1e12)


def test_credentials_can_be_passed() -> None:
    with Client("127.0.0.1:1", tls=grpc.ssl_channel_credentials()) as client:
        assert client
    with pytest.raises(FileNotFoundError):
        Client("127.0.0.1:1", tls="/nowhere/ca.pem")
