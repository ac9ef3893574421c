"""Requests and responses whose mapping takes long or much memory: they run in a thread, or are refused in words."""

import asyncio
import json
import resource
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatrpc.v1.chat_message_pb2 import ChatMessage, ContentPart
from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest
from chatrpc.v1.chat_response_pb2 import CreateChatCompletionResponse, CreateChatCompletionStreamResponse
from support import Outcome, Script, Service, failure, http, outcome, request, service, sse

Code = grpc.StatusCode
Invoke = Callable[[Service, bytes], Awaitable[Outcome]]
OK = http(b'{"choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}]}')
HANG_SECONDS = 120
ATTEMPTS = 4
"""Attempts to see health checks beside a call, because another process can hold the machine."""
PAGE_BYTES = resource.getpagesize()


def unary(chat: Service, data: bytes) -> Awaitable[Outcome]:
    """Call with an encoded request, because the caller shares the loop and must not do large work in it."""
    return outcome(chat.channel.unary_unary(f"/{SERVICE}/CreateChatCompletion")(data, timeout=HANG_SECONDS))


def streaming(chat: Service, data: bytes) -> Awaitable[Outcome]:
    return outcome(chat.channel.unary_stream(f"/{SERVICE}/CreateChatCompletionStream")(data, timeout=HANG_SECONDS))


SERVICE = "chatrpc.v1.ChatCompletionService"
both = pytest.mark.parametrize("call", [unary, streaming])


def repeated(message: Message, times: int) -> bytes:
    """Return the encoding of a message whose repeated fields are repeated."""
    return CreateChatCompletionRequest(model="m").SerializeToString() + message.SerializeToString() * times


def messages(count: int) -> bytes:
    return repeated(CreateChatCompletionRequest(messages=[ChatMessage(role="user", content="hello there")]), count)


def logprobs(count: int) -> bytes:
    token = {"token": " word", "logprob": -1.234567, "bytes": [32, 119], "top_logprobs": []}
    choice = {"index": 0, "message": {"content": "a"}, "finish_reason": "stop", "logprobs": {"content": "TOKENS"}}
    whole = json.dumps({"choices": [choice]})
    return whole.replace('"TOKENS"', f"[{','.join([json.dumps(token)] * count)}]").encode()


class Bystander:
    """A caller of health checks, one after another, that watches the memory of the process too."""

    def __init__(self, chat: Service) -> None:
        self._chat = chat
        self.longest_seconds = 0.0
        self.responses = 0
        self.memory_before = self.memory_peak = self._memory()

    async def beside(self, call: Awaitable[Outcome]) -> tuple[Outcome, float]:
        """Return the outcome of the call and its seconds."""
        health = health_pb2_grpc.HealthStub(self._chat.channel)
        await health.Check(health_pb2.HealthCheckRequest())
        started = time.monotonic()
        running = asyncio.ensure_future(call)
        while not running.done():
            before = time.monotonic()
            await health.Check(health_pb2.HealthCheckRequest())
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - before)
            self.responses += 1
            self.memory_peak = max(self.memory_peak, self._memory())
            await asyncio.sleep(0.001)
        return await running, time.monotonic() - started

    @property
    def grown_mebibytes(self) -> int:
        return (self.memory_peak - self.memory_before) >> 20

    @staticmethod
    def _memory() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


async def served_beside(
    chat: Service, call: Callable[[], Awaitable[Outcome]], share: float = 0.5
) -> tuple[Outcome, Bystander]:
    """Return the outcome of large work. If it held the loop, a health check would take that share of the call."""
    for _ in range(ATTEMPTS):
        bystander = Bystander(chat)
        ended, seconds = await bystander.beside(call())
        if bystander.responses >= 10 and bystander.longest_seconds < seconds * share:
            return ended, bystander
    raise AssertionError(f"{bystander.responses} health checks took up to {bystander.longest_seconds} of {seconds} s")


@both
@pytest.mark.parametrize("count", [60_000, pytest.param(200_000, marks=pytest.mark.slow)])
async def test_many_messages(script: Script, call: Invoke, count: int) -> None:
    script.respond_with(OK)
    async with service(script.base_url) as chat:
        data = messages(count)
        ended, _ = await served_beside(chat, lambda: call(chat, data))
    assert ended.code is Code.OK
    assert script.exchanges[0].body.count(b'{"role":"user","content":"hello there"}') == count


async def test_many_keys(script: Script) -> None:
    script.respond_with(OK)
    keys = {f"key{number}": number for number in range(150_000)}
    async with service(script.base_url) as chat:
        data = request(extra_json=json.dumps(keys)).SerializeToString()
        ended, _ = await served_beside(chat, lambda: unary(chat, data))
    assert ended.code is Code.OK
    assert keys.items() <= json.loads(script.exchanges[0].body).items()


@both
@pytest.mark.parametrize("count", [40_000, pytest.param(160_000, marks=pytest.mark.slow)])
async def test_many_logprobs(script: Script, call: Invoke, count: int) -> None:
    script.respond_with(http(logprobs(count)))
    async with service(script.base_url) as chat:
        ended, _ = await served_beside(chat, lambda: call(chat, request().SerializeToString()))
    assert ended.code is Code.OK
    kind = CreateChatCompletionResponse if call is unary else CreateChatCompletionStreamResponse
    choice = kind.FromString(ended.messages[0]).choices[0]  # type: ignore[attr-defined]
    assert (choice.finish_reason, len(choice.logprobs.content)) == ("stop", count)


@pytest.mark.slow
@pytest.mark.parametrize("count", [10_000, 100_000])
async def test_many_events_to_a_unary_call(script: Script, count: int) -> None:
    """Reasoning is not text, so each event is decoded."""
    event = b'{"choices":[{"index":0,"delta":{"reasoning_details":[{"text":"a"}]}}]}'
    script.respond_with(sse(*[event] * count))
    async with service(script.base_url) as chat:
        ended, _ = await served_beside(chat, lambda: unary(chat, request().SerializeToString()))
    (choice,) = CreateChatCompletionResponse.FromString(ended.messages[0]).choices
    assert len(json.loads(choice.message.extra_json)["reasoning_details"]) == count


NESTED_KEYS = '{"a":' * 8 + "{" + ",".join(f'"{number}":0' for number in range(400_000)) + "}" * 9


async def test_nested_keys_of_a_caller(script: Script) -> None:
    script.respond_with(OK)
    async with service(script.base_url) as chat:
        data = request(extra_json=NESTED_KEYS).SerializeToString()
        ended, _ = await served_beside(chat, lambda: unary(chat, data), 0.4)
    assert ended.code is Code.OK
    assert NESTED_KEYS[1:-1].encode() in script.exchanges[0].body


DENSE_RESPONSES = {
    "nested keys": b'{"choices":[],"a":%b}' % NESTED_KEYS.encode(),
    "half characters": b'{"choices":[{"message":{"content":"%b"}}]}' % (rb"\ud83d" * 2_000_000),
}


@pytest.mark.parametrize("body", DENSE_RESPONSES.values(), ids=DENSE_RESPONSES)
async def test_dense_json_of_an_upstream(script: Script, body: bytes) -> None:
    script.respond_with(http(body))
    async with service(script.base_url) as chat:
        ended, _ = await served_beside(chat, lambda: unary(chat, request().SerializeToString()), 0.3)
    assert ended.code is Code.OK


TINY = {
    # case: the field that is named, and 20 MiB of it
    "empty messages": ("messages", b"\x12\x00" * (10 << 20)),
    "tiny messages": ("messages", b"\x12\x03\x0a\x01u" * (4 << 20)),
    "empty parts": ("messages[0].content_parts", b"\x1a\x00" * (10 << 20)),
    "empty stop sequences": ("stop", b"\x42\x00" * (10 << 20)),
    "after a group": ("messages", b"\xc3\x3e\xc4\x3e" + b"\x12\x00" * (10 << 20)),
}


@pytest.mark.parametrize(("field", "data"), TINY.values(), ids=TINY)
async def test_elements_beyond_the_limit_take_no_memory(script: Script, field: str, data: bytes) -> None:
    data = data[: (20 << 20) - 100]
    if field.startswith("messages["):
        length = len(data)
        varint = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14 & 127 | 128, length >> 21])
        data = b"\x12" + varint + data
    async with service(script.base_url) as chat:
        ended, bystander = await served_beside(chat, lambda: unary(chat, data))
        assert (ended.code, ended.reason) == (Code.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert ended.message.startswith(f"{field}: has 50000")
        assert ended.message.endswith(
            "elements or more; all lists of a request can have 500000 in total; send fewer or raise"
            " limits.max_request_elements"
        )
        assert [violation.field for violation in ended.details["BadRequest"].field_violations] == [field]
        assert bystander.grown_mebibytes < 300  # 1.8 GiB without the limit
        assert chat.value("grpc_server_handled_total", grpc_code="InvalidArgument") >= 1
    assert not script.exchanges


async def test_the_limit_of_elements_is_a_setting(script: Script) -> None:
    script.respond_with(OK)
    parts = [ChatMessage(role="user", content_parts=[ContentPart(text="a")])]
    async with service(script.base_url, limits={"max_request_elements": 3}) as chat:
        small = request()
        small.messages.extend(parts)
        assert (await outcome(chat.stub.CreateChatCompletion(small))).code is Code.OK
        small.stop.append("a")
        failed = await failure(chat.stub.CreateChatCompletion(small))
        assert failed.message == (
            "stop: has 1 elements or more; all lists of a request can have 3 in total;"
            " send fewer or raise limits.max_request_elements"
        )


async def test_values_of_json_beyond_the_limit(script: Script) -> None:
    async with service(script.base_url) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request(extra_json=f'{{"a":[{"[]," * 600_000}1]}}')))
        assert (failed.code, failed.reason) == (Code.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert failed.message == (
            "extra_json: is too large: it has 1200002 commas and opening brackets; the limit is 1000000;"
            " send fewer values"
        )
        script.respond_with(http(b'{"choices":[],"a":[' + b"[]," * 600_000 + b"1]}"))
        failed = await failure(chat.stub.CreateChatCompletion(request()))
        assert (failed.code, failed.reason) == (Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE")
        assert "it has more than 1000000 values besides token probabilities" in failed.message
        script.respond_with(http(b'{"choices":[],"a":[' + b"[]," * 5_000_000 + b"1]}"))
        bystander = Bystander(chat)
        ended, _ = await bystander.beside(unary(chat, request().SerializeToString()))
        assert (ended.code, ended.reason) == (Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE")
        assert "commas and opening brackets; the limit is 8000000" in ended.message
        assert bystander.grown_mebibytes < 300
        await chat.wait_for(2, "chatrpc_upstream_protocol_errors_total", kind="oversize")


def choices(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"index": index, **fields} for index in range(count)]


def tool_calls(count: int) -> list[dict[str, Any]]:
    return [{"index": index, "id": f"c{index}", "function": {"name": "f"}} for index in range(count)]


INVENTED: dict[str, tuple[bytes, str]] = {
    "choices": (http(json.dumps({"choices": choices(129, message={})}).encode()), "129 choices; the limit is 128"),
    "calls": (
        http(json.dumps({"choices": choices(1, message={"tool_calls": tool_calls(1025)})}).encode()),
        "1025 tool calls; the limit is 1024",
    ),
    "streamed choices": (
        sse(*(json.dumps({"choices": [{"index": index, "delta": {"content": "a"}}]}).encode() for index in range(129))),
        "129 choices; the limit is 128",
    ),
    "streamed calls": (
        sse(
            *(
                json.dumps({"choices": choices(1, delta={"tool_calls": [tool_call]})}).encode()
                for tool_call in tool_calls(1025)
            )
        ),
        "1025 tool calls; the limit is 1024",
    ),
    "20,000 choices with half a character": (
        sse(json.dumps({"choices": choices(20_000, delta={"content": "\ud83d"})}).encode()),
        "20000 choices; the limit is 128",
    ),
    "events without blank lines": (
        sse(b"x\ndata: ".join([b""] * 100_002)),
        "lines in one event; the limit is 100000",
    ),
}


@both
@pytest.mark.parametrize(("response", "message"), INVENTED.values(), ids=INVENTED)
async def test_invented_things_are_limited(script: Script, call: Invoke, response: bytes, message: str) -> None:
    script.respond_with(response)
    async with service(script.base_url) as chat:
        ended = await call(chat, request().SerializeToString())
        assert (ended.code, ended.reason) == (Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE")
        assert message in ended.message
        await chat.wait_for(1, "chatrpc_upstream_protocol_errors_total", kind="oversize")
    assert len(script.exchanges) == 1


async def test_a_large_event_passes_and_a_larger_one_names_the_setting(script: Script) -> None:
    def event(size: int) -> bytes:
        return json.dumps(
            {"choices": [{"index": 0, "delta": {"content": "x" * size}, "finish_reason": "stop"}]}
        ).encode()

    async with service(script.base_url) as chat:
        script.respond_with(sse(event(19 << 20)))
        ended = await streaming(chat, request().SerializeToString())
        assert (ended.code, len(ended.messages)) == (Code.OK, 1)
        script.respond_with(sse(event(20 << 20)))
        ended = await streaming(chat, request().SerializeToString())
        assert (ended.code, ended.reason) == (Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE")
        assert (
            ended.message == "an event of the upstream's stream exceeds 20971520 bytes; raise upstream.max_event_bytes"
        )
