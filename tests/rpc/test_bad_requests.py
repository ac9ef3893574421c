"""Invalid requests and their errors: the place and the accepted values. None reaches the upstream."""

from typing import Any

import grpc
import pytest

from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc.v1.chat_request_pb2 import (
    CreateChatCompletionRequest,
    FunctionDefinition,
    ResponseFormat,
    Tool,
    ToolChoice,
)
from chatrpc_echo import Echo
from support import Service, failure, request, service

BAD: list[tuple[str, CreateChatCompletionRequest, str, str]] = [
    ("no-messages", CreateChatCompletionRequest(model="echo"), "messages", "is empty; add at least one message"),
    (
        "empty-role",
        CreateChatCompletionRequest(messages=[ChatMessage(role="user", content="a"), ChatMessage(content="b")]),
        "messages[1].role",
        "is empty; use a role such as user, system or assistant",
    ),
    (
        "parameters-not-json",
        request(tools=[Tool(function=FunctionDefinition(name="f", parameters_json="{"))]),
        "tools[0].function.parameters_json",
        "is not JSON",
    ),
    (
        "parameters-not-an-object",
        request(tools=[Tool(function=FunctionDefinition(name="f", parameters_json="[1]"))]),
        "tools[0].function.parameters_json",
        "is an array in JSON; use an object",
    ),
    (
        "schema-not-an-object",
        request(response_format=ResponseFormat(json_schema={"name": "s", "schema_json": '"x"'})),
        "response_format.json_schema.schema_json",
        "is a string in JSON; use an object",
    ),
    (
        "tool-choice-not-json",
        request(tool_choice=ToolChoice(raw_json="auto")),
        "tool_choice.raw_json",
        "is not JSON",
    ),
    ("extra-not-an-object", request(extra_json="[]"), "extra_json", "is an array in JSON; use an object"),
    ("extra-nan", request(extra_json='{"a": NaN}'), "extra_json", "NaN is not a JSON value"),
    (
        "extra-sets-a-field-again",
        request(temperature=1, extra_json='{"temperature": 0}'),
        "extra_json",
        'sets "temperature", which a field of this message also sets; set only one',
    ),
    ("extra-sets-the-model", request(extra_json='{"model": "x"}'), "extra_json", 'must not set "model"'),
    ("extra-sets-stream", request(extra_json='{"stream": true}'), "extra_json", 'must not set "stream"'),
    ("stream-contradicts", request(stream=True), "stream", "call CreateChatCompletionStream"),
    ("not-finite", request(temperature=float("nan")), "temperature", "JSON allows only finite numbers"),
]


@pytest.mark.parametrize(("bad", "field", "says"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
async def test_bad_request(chat: Service, echo: Echo, bad: CreateChatCompletionRequest, field: str, says: str) -> None:
    failed = await failure(chat.stub.CreateChatCompletion(bad))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    (violation,) = failed.details["BadRequest"].field_violations
    assert violation.field == field
    assert says in violation.description
    assert failed.message == f"{field}: {violation.description}"
    assert not echo.requests


async def test_stream_contradicts_the_streaming_rpc(chat: Service) -> None:
    failed = await failure(chat.stub.CreateChatCompletionStream(request(stream=False)))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "call CreateChatCompletion" in failed.message


@pytest.mark.parametrize("stream", [None, True])
async def test_stream_that_agrees_with_the_rpc_is_accepted(chat: Service, stream: bool | None) -> None:
    assert [chunk async for chunk in chat.stub.CreateChatCompletionStream(request(stream=stream))]


async def test_messages_up_to_the_limit_pass(chat: Service) -> None:
    response = await chat.stub.CreateChatCompletion(request("x" * (19 << 20)))
    assert response.usage.prompt_tokens > 0


async def test_a_message_over_the_limit_is_rejected(echo: Echo) -> None:
    async with service(echo.base_url, limits={"max_message_bytes": 100_000}) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request("x" * 100_001)))
        assert failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max (100" in failed.message
        assert not echo.requests


@pytest.mark.parametrize("rpc", ["CreateChatCompletion", "CreateChatCompletionStream"])
async def test_a_response_over_the_limit_is_an_error(echo: Echo, rpc: str) -> None:
    async with service(echo.base_url, limits={"max_message_bytes": 100_000}) as chat:
        failed = await failure(getattr(chat.stub, rpc)(request(model="echo:size=200000")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE")
        assert "more than 100000; raise limits.max_message_bytes" in failed.message
        await chat.wait_for(1, "grpc_server_handled_total", grpc_code="ResourceExhausted")


async def test_unknown_method(chat: Service) -> None:
    call: Any = chat.channel.unary_unary("/chatrpc.v1.ChatCompletionService/Nope")
    failed = await failure(call(b""))
    assert failed.code is grpc.StatusCode.UNIMPLEMENTED


async def test_bytes_that_are_not_a_message(chat: Service, echo: Echo) -> None:
    call: Any = chat.channel.unary_unary("/chatrpc.v1.ChatCompletionService/CreateChatCompletion")
    failed = await failure(call(b"\xff\xff\xff"))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert failed.message == "request: its 3 bytes are no CreateChatCompletionRequest; use the stubs of chatrpc.v1"
    await chat.wait_for(1, "grpc_server_handled_total", grpc_code="InvalidArgument")
    assert not echo.requests


async def test_the_upstream_validates_roles(chat: Service) -> None:
    """A provider's documentation shows this error, see test_provider_examples.py."""
    bad = CreateChatCompletionRequest(model="echo", messages=[ChatMessage(role="doctor", content="a")])
    failed = await failure(chat.stub.CreateChatCompletion(bad))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.details["UpstreamError"].type == "invalid_request_error"
    assert not failed.details["UpstreamError"].HasField("param")


async def test_unknown_model(chat: Service) -> None:
    failed = await failure(chat.stub.CreateChatCompletion(request(model="gpt-9")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "UPSTREAM_MODEL_NOT_FOUND")
