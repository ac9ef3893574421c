"""Four providers' API pages: each request is sent as its page shows it, each response is returned whole.

One row per page and case: built from the contract, sent over a channel, received by a scripted upstream. The settings
are the page's example in deploy/examples, so the examples are proven too; only host, ports and key are the test's own.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from google.protobuf.message import Message

from chatrpc.v1.chat_message_pb2 import ChatMessage, ContentPart, ImageUrl
from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest, ResponseFormat
from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_server.server import Server
from chatrpc_server.settings import Settings, load
from support import Script, collect, failure, http, request, sse

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
KEY = "canary-key"
PATHS = {
    "chatgpt-gateway": "/v1/chat/completions",
    "cometapi": "/v1/chat/completions",
    "yi-vision": "/chat/completions",
    "openai": "/v1/chat/completions",
}
"""By example, as the pages have them."""
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
GPT = "gpt-3.5-turbo"
JPG = "https://images.example.com/2024/02/01/cat.jpg"


@dataclass
class Case:
    """A request of the contract, the same request on the provider's page, and the upstream's response."""

    id: str
    """`<example>/<case>`, where the settings are deploy/examples/<example>.yaml."""
    request: CreateChatCompletionRequest
    body: dict[str, Any]
    """The body on the page. With `"stream": True` it is a stream, and `response` a list of chunks."""
    response: Any
    status: str = "200 OK"
    """A status other than 200 makes the response an error."""
    before: tuple[bytes, ...] = ()
    """The responses to earlier attempts of the same call."""


def body(content: Any, model: str, **keys: Any) -> dict[str, Any]:
    """Return a body with one message of the user."""
    return {"model": model, "messages": [{"role": "user", "content": content}], **keys}


def picture(url: str, model: str, **fields: Any) -> CreateChatCompletionRequest:
    """Return a request with a text and a picture."""
    parts = [ContentPart(text="图里是什么?"), ContentPart(image_url=ImageUrl(url=url))]
    return CreateChatCompletionRequest(model=model, messages=[ChatMessage(role="user", content_parts=parts)], **fields)


def picture_body(url: str, model: str, **keys: Any) -> dict[str, Any]:
    """Return the body with a text and a picture."""
    parts = [{"type": "text", "text": "图里是什么?"}, {"type": "image_url", "image_url": {"url": url}}]
    return body(parts, model, **keys)


def chunks(model: str, *texts: str, finish_reason: str = "stop") -> list[dict[str, Any]]:
    """Return a stream as gpt-3.5 sent it: the role alone, the text, the reason alone; no usage, and nulls."""
    deltas = [{"role": "assistant"}, *({"content": text} for text in texts), {}]
    head = {"id": "chatcmpl-123", "object": "chat.completion.chunk", "created": 1677652288, "model": model}
    reasons = [None] * (len(deltas) - 1) + [finish_reason]
    return [
        {**head, "choices": [{"delta": delta, "index": 0, "finish_reason": reason}]}
        for delta, reason in zip(deltas, reasons, strict=True)
    ]


def refusal(message: str) -> dict[str, Any]:
    """Return an error as gpt-3.5's API sent it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


HELLO = {
    "id": "chatcmpl-123",
    "object": "chat.completion",
    "created": 1677652288,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "\n\nHello there, how may I assist you today?"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
}
"""The sample response of two pages. It names no model."""
DOCTOR = CreateChatCompletionRequest(model=GPT, messages=[ChatMessage(role="doctor", content="Hello!")])
DOCTOR_BODY = {"model": GPT, "messages": [{"role": "doctor", "content": "Hello!"}]}
NO_DOCTOR = refusal("'doctor' is not one of ['system', 'assistant', 'user'] - 'messages.0.role'")
CALL = {"role": "assistant", "content": None, "function_call": {"name": "capital", "arguments": '{"of": "France"}'}}
ALL_REASONS = {
    **HELLO,
    "model": "gpt-4-0613",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"},
        {"index": 1, "message": {"role": "assistant", "content": "It is Par"}, "finish_reason": "length"},
        {"index": 2, "message": {"role": "assistant", "content": ""}, "finish_reason": "content_filter"},
        {"index": 3, "message": CALL, "finish_reason": "function_call"},
    ],
}
TOO_MANY = http(b'{"error": {"message": "slow down"}}', "429 Too Many Requests", retry_after_ms="1")
OLD = refusal("Unrecognized request argument supplied: stream_options")
NO_USAGE = http(json.dumps(OLD).encode(), "400 Bad Request")
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
"""The service adds the second key, because it always requests usage (see the contract)."""

CASES = [
    # A gateway in front of ChatGPT's models. `seen` is how its page spells seed; its tools are strings.
    Case(
        "chatgpt-gateway/every-field",
        request(
            "Answer in JSON.",
            "gpt-4o",
            temperature=1,
            top_p=1,
            n=1,
            stream=False,
            stop=["END"],
            max_tokens=300,
            presence_penalty=-0.5,
            frequency_penalty=0.25,
            user="user-7",
            response_format=ResponseFormat(type="json_object"),
            extra_json='{"logit_bias": null, "seen": 42, "tools": ["get_weather", "get_time"]}',
        ),
        body(
            "Answer in JSON.",
            "gpt-4o",
            temperature=1,
            top_p=1,
            n=1,
            stop="END",
            max_tokens=300,
            presence_penalty=-0.5,
            frequency_penalty=0.25,
            logit_bias=None,
            user="user-7",
            response_format={"type": "json_object"},
            seen=42,
            tools=["get_weather", "get_time"],
        ),
        {**HELLO, "model": "gpt-4o-2024-08-06", "system_fingerprint": "fp_44709d6fcb"},
    ),
    Case(
        "chatgpt-gateway/image-stream",
        picture(PNG, "gpt-4o", stream=True, max_tokens=300),
        picture_body(PNG, "gpt-4o", max_tokens=300, **STREAMED),
        chunks("gpt-4o", "一只", "猫", "。"),
    ),
    # CometAPI: many makers' models, the schema of OpenAI.
    Case(
        "cometapi/every-field",
        CreateChatCompletionRequest(
            model="gpt-4",
            messages=[
                ChatMessage(role="system", content="Be brief."),
                ChatMessage(role="user", content="Hi"),
                ChatMessage(role="assistant", content="Hello."),
                ChatMessage(role="user", content="The capital of France?"),
            ],
            temperature=0.2,
            top_p=0.1,
            n=4,
            stream=False,
            stop=["a", "b", "c", "d"],
            max_tokens=5,
            presence_penalty=-2,
            frequency_penalty=2,
            logit_bias={"50256": -100, "1734": 0.5},
        ),
        {
            "model": "gpt-4",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": "The capital of France?"},
            ],
            "temperature": 0.2,
            "top_p": 0.1,
            "n": 4,
            "stop": ["a", "b", "c", "d"],
            "max_tokens": 5,
            "presence_penalty": -2,
            "frequency_penalty": 2,
            "logit_bias": {"50256": -100, "1734": 0.5},
        },
        ALL_REASONS,
    ),
    Case(
        "cometapi/stream",
        request("Hello!", "gpt-4", stream=True, n=1),
        body("Hello!", "gpt-4", n=1, **STREAMED),
        chunks("gpt-4", "Hel", "lo", finish_reason="length"),
    ),
    Case(
        "cometapi/backs-off-after-429",
        request("Hello!", "gpt-4"),
        body("Hello!", "gpt-4"),
        {**HELLO, "model": "gpt-4"},
        before=(TOO_MANY, TOO_MANY, TOO_MANY),
    ),
    # yi-vision: the path has no /v1; temperature and top_p are integers; there is no stream.
    Case("yi-vision/image", picture(JPG, "yi-vision"), picture_body(JPG, "yi-vision"), HELLO),
    Case(
        "yi-vision/every-field",
        request(
            "你好",
            "yi-vision",
            temperature=2,
            top_p=0,
            n=1,
            stop=["。"],
            max_tokens=1024,
            presence_penalty=1.5,
            frequency_penalty=-1.5,
            user="user-7",
            extra_json='{"logit_bias": null}',
        ),
        body(
            "你好",
            "yi-vision",
            temperature=2,
            top_p=0,
            n=1,
            stop="。",
            max_tokens=1024,
            presence_penalty=1.5,
            frequency_penalty=-1.5,
            logit_bias=None,
            user="user-7",
        ),
        HELLO,
    ),
    # OpenAI in the days of gpt-3.5. `frequency_penaley` is how the page spells it.
    Case("openai/hello", request("Hello!", GPT), body("Hello!", GPT), HELLO),
    Case(
        "openai/every-field",
        request(
            "Hello!",
            "gpt-3.5-turbo-0301",
            temperature=1.8,
            top_p=1,
            n=1,
            stream=False,
            stop=["\n", "END"],
            max_tokens=4000,
            presence_penalty=0.5,
            logit_bias={"50256": -100},
            user="user-7",
            extra_json='{"frequency_penaley": 0.5}',
        ),
        body(
            "Hello!",
            "gpt-3.5-turbo-0301",
            temperature=1.8,
            top_p=1,
            n=1,
            stop=["\n", "END"],
            max_tokens=4000,
            presence_penalty=0.5,
            logit_bias={"50256": -100},
            user="user-7",
            frequency_penaley=0.5,
        ),
        HELLO,
    ),
    Case("openai/stop-as-string", request("Hello!", GPT, stop=["END"]), body("Hello!", GPT, stop="END"), HELLO),
    Case(
        "openai/stream",
        request("Hello!", GPT, stream=True),
        body("Hello!", GPT, **STREAMED),
        chunks("gpt-3.5-turbo-0301", "\n\n", "Hello", " there", "!"),
    ),
    Case(
        "openai/stream-before-stream-options",
        request("Hello!", GPT),
        body("Hello!", GPT, stream=True),
        chunks("gpt-3.5-turbo-0301", "\n\n", "Hello", " there", "!"),
        before=(NO_USAGE,),
    ),
    Case("openai/unknown-role", DOCTOR, DOCTOR_BODY, NO_DOCTOR, status="400 Bad Request"),
    Case("openai/unknown-role-in-stream", DOCTOR, DOCTOR_BODY | STREAMED, NO_DOCTOR, status="400 Bad Request"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_page(case: Case, script: Script, tmp_path: Path) -> None:
    name = case.id.partition("/")[0]
    script.respond_with(*case.before, response_of(case))
    async with service(example(name, script, tmp_path)) as stub:
        if case.body.get("stream"):
            call = stub.CreateChatCompletionStream(case.request, metadata=[("x-chatrpc-coalesce", "off")])
        else:
            call = stub.CreateChatCompletion(case.request)
        if case.status != "200 OK":
            failed = await failure(call)
            error = case.response["error"]
            assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UPSTREAM_INVALID_REQUEST")
            assert failed.message == error["message"]
            said = as_json(failed.details["UpstreamError"])
            assert json.loads(said.pop("raw_body")) == case.response
            assert said == {"http_status": int(case.status[:3]), "message": error["message"], "type": error["type"]}
        elif case.body.get("stream"):
            assert [as_json(chunk) for chunk in await collect(call)] == without_nulls(case.response)
        else:
            assert as_json(await call) == without_nulls(case.response)

    assert len(script.exchanges) == len(case.before) + 1
    for exchange in script.exchanges:
        request_line, *lines = exchange.head.decode().rstrip().split("\r\n")
        assert request_line == f"POST {PATHS[name]} HTTP/1.1"
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert headers["content-type"] == "application/json"
        assert "application/json" in headers["accept"].split(", ")
        assert headers["authorization"] == f"Bearer {KEY}"
    assert exactly(json.loads(script.exchanges[-1].body)) == exactly(case.body)


def response_of(case: Case) -> bytes:
    """Return the case's response as HTTP."""
    if isinstance(case.response, list):
        return sse(*(json.dumps(chunk).encode() for chunk in case.response))
    return http(json.dumps(case.response).encode(), case.status)


def example(name: str, script: Script, folder: Path) -> Settings:
    """Return an example's settings with the script's address and the path of the example's base URL."""
    key_file = folder / "key"
    key_file.write_text(f"{KEY}\n")
    environ = {
        "CHATRPC_CONFIG": str(EXAMPLES / f"{name}.yaml"),
        "CHATRPC_LISTEN": "127.0.0.1:0",
        "CHATRPC_METRICS_LISTEN": "127.0.0.1:0",
        "CHATRPC_UPSTREAM__API_KEY_FILE": str(key_file),
    }
    path = urlsplit(load(environ=environ).upstream.base_url).path
    return load(environ={**environ, "CHATRPC_UPSTREAM__BASE_URL": script.base_url.removesuffix("/v1") + path})


@asynccontextmanager
async def service(settings: Settings) -> AsyncIterator[Any]:
    """Run the service with exactly these settings; yield a stub."""
    server = Server(settings)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            yield ChatCompletionServiceStub(channel)
    finally:
        await server.stop()


def as_json(message: Message) -> dict[str, Any]:
    """Return the JSON object that a response mirrors. Numbers are always present, other fields if set."""
    out: dict[str, Any] = json.loads(getattr(message, "extra_json", "") or "{}")
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        there = message.HasField(field.name) if field.has_presence else value or type(value) is int
        if field.name == "extra_json" or not there:
            continue
        if field.is_repeated:
            out[field.name] = [as_json(item) if isinstance(item, Message) else item for item in value]
        else:
            out[field.name] = as_json(value) if isinstance(value, Message) else value
    return out


def without_nulls(value: Any) -> Any:
    """Remove nulls, because in a response null means absent."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def exactly(value: Any) -> str:
    """Return a JSON value as text that distinguishes 1 from 1.0 and ignores the order of keys."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
