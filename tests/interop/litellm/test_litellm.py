"""The service in front of a LiteLLM proxy, a server of another project for the chat completions API."""

import asyncio
import json
import logging
import os
from typing import Any

import grpc
import pytest

from chatrpc.v1.chat_message_pb2 import ChatMessage, ContentPart, ImageUrl
from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest, FunctionDefinition, Tool
from chatrpc_echo import Echo
from support import Service, collect, failure, request, service

Code = grpc.StatusCode
BASE_URL = os.environ["LITELLM_BASE_URL"]
KEY = os.environ["LITELLM_MASTER_KEY"]
UNARY, STREAM = "CreateChatCompletion", "CreateChatCompletionStream"
TEXT = "Grüße vom Proxy: 你好, 🌍!"
"""The response of the model `text` in config.yaml."""
CITY = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
TOOLS = [
    Tool(function=FunctionDefinition(name="get_weather", parameters_json=CITY)),
    Tool(function=FunctionDefinition(name="get_time", parameters_json='{"type": "object"}')),
]


def texts(chunks: list[Any]) -> dict[int, str]:
    """Return the text of each choice."""
    said: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            said[choice.index] = said.get(choice.index, "") + choice.delta.content
    return said


@pytest.mark.parametrize("base_url", [BASE_URL, BASE_URL.removesuffix("/v1")], ids=["v1", "no-v1"])
async def test_unary(base_url: str) -> None:
    async with service(base_url, upstream={"api_key": KEY}) as chat:
        response = await chat.stub.CreateChatCompletion(request(model="text"))
    (choice,) = response.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    assert (response.object, response.model) == ("chat.completion", "text")
    assert response.id
    assert response.created
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens > 0


@pytest.mark.parametrize("coalesce", ["on", "off"])
async def test_stream(chat: Service, coalesce: str) -> None:
    chunks = await collect(
        chat.stub.CreateChatCompletionStream(request(model="text"), metadata=[("x-chatrpc-coalesce", coalesce)])
    )
    assert texts(chunks) == {0: TEXT}
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    assert {(chunk.object, chunk.model, chunk.id) for chunk in chunks} == {
        ("chat.completion.chunk", "text", chunks[0].id)
    }
    (usage,) = [chunk.usage for chunk in chunks if chunk.HasField("usage")]
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    # LiteLLM makes a chunk of every three characters.
    assert coalesce == "on" or len(chunks) > len(TEXT) / 3


async def test_two_choices(chat: Service) -> None:
    response = await chat.stub.CreateChatCompletion(request(model="text", n=2))
    assert [(choice.index, choice.message.content) for choice in response.choices] == [(0, TEXT), (1, TEXT)]


async def test_two_choices_in_a_stream(chat: Service) -> None:
    # LiteLLM drops the second choice's finish_reason; its [DONE] marks the stream as complete.
    assert texts(await collect(chat.stub.CreateChatCompletionStream(request(model="text", n=2)))) == {0: TEXT, 1: TEXT}


async def test_mocked_tool_calls(chat: Service) -> None:
    response = await chat.stub.CreateChatCompletion(request(model="tools"))
    (choice,) = response.choices
    assert choice.message.content == "Let me see."
    assert [
        (call.id, call.type, call.function.name, call.function.arguments) for call in choice.message.tool_calls
    ] == [
        ("call_1", "function", "get_weather", '{"city":"Köln"}'),
        ("call_2", "function", "get_time", "{}"),
    ]


async def test_tool_calls_and_their_results(chat: Service, echo: Echo) -> None:
    asked = request("Hi", tools=TOOLS, parallel_tool_calls=True)
    message = (await chat.stub.CreateChatCompletion(asked)).choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["get_weather", "get_time"]

    # The response returns unchanged, with everything that LiteLLM has added.
    asked.messages.append(message)
    for call in message.tool_calls:
        asked.messages.append(ChatMessage(role="tool", tool_call_id=call.id, content="done"))
    await chat.stub.CreateChatCompletion(asked)
    received = echo.requests[-1].body["messages"]
    assert [message["role"] for message in received] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in received[1]["tool_calls"]] == [call.id for call in message.tool_calls]
    assert [message["tool_call_id"] for message in received[2:]] == [call.id for call in message.tool_calls]


async def test_tool_calls_in_a_stream(chat: Service, echo: Echo) -> None:
    asked = request("Hi", tools=TOOLS, parallel_tool_calls=True)
    calls: dict[int, dict[str, str]] = {}
    for chunk in await collect(chat.stub.CreateChatCompletionStream(asked)):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls:
                known = calls.setdefault(call.index, {"id": "", "name": "", "arguments": ""})
                known["id"] += call.id
                known["name"] += call.function.name
                known["arguments"] += call.function.arguments
    assert [(call["name"], json.loads(call["arguments"])) for call in calls.values()] == [
        ("get_weather", {"city": "text"}),
        ("get_time", {}),
    ]
    assert all(call["id"].startswith("call_") for call in calls.values())


@pytest.mark.parametrize("rpc", [UNARY, STREAM])
async def test_parameters_reach_the_model_and_logprobs_return(chat: Service, echo: Echo, rpc: str) -> None:
    url = "data:image/png;base64,iVBORw0KGgo="
    parts = [ContentPart(text="Hi"), ContentPart(image_url=ImageUrl(url=url, detail="low"))]
    asked = CreateChatCompletionRequest(
        model="echo",
        messages=[ChatMessage(role="user", content_parts=parts)],
        temperature=1,
        top_p=0.7,
        n=2,
        stop=["END"],
        logprobs=True,
        top_logprobs=2,
        seed=7,
        logit_bias={"50256": -100},
        extra_json='{"top_k": 5, "frequency_penaley": 0.5}',
    )
    call = getattr(chat.stub, rpc)(asked)
    choices = (await call).choices if rpc == UNARY else [c for chunk in await collect(call) for c in chunk.choices]
    body = echo.requests[-1].body
    assert body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Hi"},
                {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
            ],
        }
    ]
    sent = {"temperature": 1, "top_p": 0.7, "n": 2, "stop": "END", "logprobs": True, "top_logprobs": 2, "seed": 7}
    assert sent.items() <= body.items()
    assert (body["logit_bias"], body["top_k"], body["frequency_penaley"]) == ({"50256": -100}, 5, 0.5)
    for index in (0, 1):
        tokens = [token for choice in choices if choice.index == index for token in choice.logprobs.content]
        assert "".join(token.token for token in tokens).startswith("You said: Hi")
        assert all(len(token.top_logprobs) == 2 and token.bytes == token.token.encode() for token in tokens)


async def test_reasoning(chat: Service, echo: Echo) -> None:
    chunks = await collect(chat.stub.CreateChatCompletionStream(request("Hi", reasoning_effort="low")))
    reasoning = "".join(choice.delta.reasoning_content for chunk in chunks for choice in chunk.choices)
    assert reasoning.startswith("Thinking with low effort")
    assert texts(chunks) == {0: "You said: Hi"}


async def test_rate_limits_reach_the_caller(chat: Service, echo: Echo) -> None:
    call = chat.stub.CreateChatCompletion(request())
    await call
    metadata = {**dict(await call.initial_metadata()), **dict(await call.trailing_metadata())}
    assert metadata["x-ratelimit-limit-requests"] == "10000"


# LiteLLM's `code` is the HTTP status as text, so reasons that need a code of OpenAI's cannot occur.
ERRORS = [
    ("unknown", Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_REQUEST", 400, "no healthy deployments"),
    ("too-long", Code.INVALID_ARGUMENT, "UPSTREAM_CONTEXT_LENGTH_EXCEEDED", 400, "context window"),
    ("rate-limited", Code.RESOURCE_EXHAUSTED, "UPSTREAM_RATE_LIMITED", 429, "rate limit"),
    ("broken", Code.INTERNAL, "UPSTREAM_INTERNAL", 500, "internal server error"),
    ("overloaded", Code.UNAVAILABLE, "UPSTREAM_OVERLOADED", 529, "mock error"),
    ("echo:status=401", Code.INTERNAL, "UPSTREAM_UNAUTHENTICATED", 401, "credentials"),
    ("echo:status=404", Code.NOT_FOUND, "UPSTREAM_MODEL_NOT_FOUND", 404, "does not exist"),
    ("echo:status=503", Code.UNAVAILABLE, "UPSTREAM_OVERLOADED", 503, "overloaded"),
    ("echo:code=insufficient_quota", Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA_EXHAUSTED", 429, "quota"),
]


@pytest.mark.parametrize("rpc", [UNARY, STREAM])
@pytest.mark.parametrize(("model", "code", "reason", "http_status", "words"), ERRORS, ids=[row[0] for row in ERRORS])
async def test_error(
    chat: Service, echo: Echo, rpc: str, model: str, code: Code, reason: str, http_status: int, words: str
) -> None:
    failed = await failure(getattr(chat.stub, rpc)(request(model=model)))
    assert (failed.code, failed.reason, failed.messages) == (code, reason, [])
    assert failed.details["UpstreamError"].http_status == http_status
    assert words in failed.message
    assert KEY not in str(failed)


async def test_error_in_a_stream(chat: Service, echo: Echo) -> None:
    failed = await failure(chat.stub.CreateChatCompletionStream(request("Hi", "echo:error=2")))
    assert (failed.code, failed.reason) == (Code.INTERNAL, "UPSTREAM_ERROR_BODY")
    assert texts(failed.messages) == {0: "You said:"}
    assert failed.details["UpstreamError"].http_status == 200


KEYS = [
    ("none", None, Code.INTERNAL, "UPSTREAM_UNAUTHENTICATED"),
    # LiteLLM looks up keys other than its master key in a database; without one it responds with 400.
    ("wrong", "sk-canary-of-a-wrong-key", Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_REQUEST"),
]


@pytest.mark.parametrize("rpc", [UNARY, STREAM])
@pytest.mark.parametrize(("key", "code", "reason"), [row[1:] for row in KEYS], ids=[row[0] for row in KEYS])
async def test_bad_key(rpc: str, key: str | None, code: Code, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with service(BASE_URL, upstream={"api_key": key}) as chat:
        failed = await failure(getattr(chat.stub, rpc)(request(model="text")))
    assert (failed.code, failed.reason) == (code, reason)
    assert "canary" not in str(failed) + caplog.text


async def test_cancelled_stream(chat: Service, echo: Echo) -> None:
    call = chat.stub.CreateChatCompletionStream(request("one two three " * 30, "echo:pace=0.2"))
    first = await anext(aiter(call))
    assert first.choices
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()
    # The cancel reaches the model: the service closes its request, then LiteLLM closes its own.
    async with asyncio.timeout(10):
        await (await echo.arrived()).disconnected.wait()
    assert (await chat.stub.CreateChatCompletion(request(model="text"))).choices[0].message.content == TEXT


async def test_deadline(chat: Service, echo: Echo) -> None:
    call = chat.stub.CreateChatCompletionStream(request("one two three " * 30, "echo:pace=0.2"), timeout=2)
    failed = await failure(call)
    assert failed.code is Code.DEADLINE_EXCEEDED
    assert failed.messages
    async with asyncio.timeout(10):
        await (await echo.arrived()).disconnected.wait()
