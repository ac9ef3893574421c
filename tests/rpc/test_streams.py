"""Streams, from the upstream's events to the caller's messages."""

import asyncio
import json
from contextlib import aclosing

import pytest

from chatrpc.v1.chat_request_pb2 import StreamOptions
from chatrpc_echo import Echo
from chatrpc_server.core.call import Call
from chatrpc_server.rpc.layers.metrics import RPCS
from chatrpc_server.settings import UpstreamSettings
from chatrpc_server.telemetry.metrics import Metrics
from chatrpc_server.upstream.metrics import AttemptMetrics
from chatrpc_server.upstream.openai import OpenAIUpstream
from support import Exchange, Script, Service, collect, failure, http, request, rested, service, sse


def chunk(content: str, **fields: object) -> bytes:
    return json.dumps({"id": "c", "choices": [{"index": 0, "delta": {"content": content}}], **fields}).encode()


END = b'{"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}'
USAGE = b'{"id": "c", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}'
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def test_each_chunk_is_sent_when_it_arrives(script: Script) -> None:
    """The upstream sends a chunk only after the caller has the previous one, so any delay would be endless."""
    arrived: asyncio.Queue[str] = asyncio.Queue()

    async def respond(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD)
        for number in range(20):
            await exchange.send(http_chunk(b"data: " + chunk(f"{number} ") + b"\n\n"))
            assert await arrived.get() == f"{number} "
        await exchange.send(http_chunk(b"data: " + END + b"\n\ndata: [DONE]\n\n"), b"0\r\n\r\n")

    script.respond_with(respond)
    async with service(script.base_url) as chat, asyncio.timeout(10):
        async for message in chat.stub.CreateChatCompletionStream(request()):
            if message.choices[0].delta.content:
                arrived.put_nowait(message.choices[0].delta.content)


@pytest.mark.parametrize(
    ("setting", "metadata", "messages"),
    [(True, (), 3), (False, (), 7), (True, (("x-chatrpc-coalesce", "off"),), 7)],
    ids=["on", "off", "off-for-the-call"],
)
async def test_chunks_of_one_read_become_one(
    script: Script, setting: bool, metadata: tuple[tuple[str, str], ...], messages: int
) -> None:
    script.respond_with(sse(*(chunk(letter) for letter in "Hello"), END, USAGE))
    async with service(script.base_url, coalesce=setting) as chat:
        chunks = await collect(chat.stub.CreateChatCompletionStream(request(), metadata=metadata))
    assert "".join(c.choices[0].delta.content for c in chunks if c.choices) == "Hello"
    assert len(chunks) == messages
    assert chunks[-1].usage.total_tokens == 3


@pytest.mark.parametrize(
    ("options", "shown"),
    [(None, True), (StreamOptions(include_usage=True), True), (StreamOptions(include_usage=False), False)],
    ids=["unset", "requested", "declined"],
)
async def test_usage_is_always_requested(chat: Service, echo: Echo, options: StreamOptions | None, shown: bool) -> None:
    """It is always counted; a caller that declines it does not get it."""
    chunks = await collect(chat.stub.CreateChatCompletionStream(request(stream_options=options)))
    assert echo.requests[-1].body["stream_options"] == {"include_usage": True}
    assert any(chunk.HasField("usage") for chunk in chunks) == shown
    assert chat.value("chatrpc_tokens_total", gen_ai_token_type="output") > 0


async def test_an_error_that_only_quotes_the_request_changes_nothing(script: Script) -> None:
    """As pydantic's 422 does, which holds the whole input, stream_options included."""
    quoting = http(
        b'{"detail": [{"loc": ["body", "n"], "input": {"stream_options": {"include_usage": true}}}]}', "422 x"
    )
    script.respond_with(quoting, quoting, sse(END))
    async with service(script.base_url) as chat:
        await failure(chat.stub.CreateChatCompletionStream(request()))
        await collect(chat.stub.CreateChatCompletionStream(request()))
    assert [b"stream_options" in exchange.body for exchange in script.exchanges] == [True, False, True]


async def test_usage_beside_an_empty_delta_is_a_usage_chunk_too(script: Script) -> None:
    """LiteLLM sends it in this form."""
    script.respond_with(
        sse(chunk("a"), END, USAGE.replace(b'"choices": []', b'"choices": [{"index": 0, "delta": {}}]'))
    )
    async with service(script.base_url) as chat:
        options = StreamOptions(include_usage=False)
        chunks = await collect(chat.stub.CreateChatCompletionStream(request(stream_options=options)))
    assert [c.HasField("usage") for c in chunks] == [False, False]


async def test_after_a_rejection_of_stream_options_they_are_omitted(chat: Service, echo: Echo) -> None:
    for _ in range(2):
        assert await collect(chat.stub.CreateChatCompletionStream(request(model="echo:reject_usage")))
    assert ["stream_options" in received.body for received in echo.requests] == [True, False, False]
    assert chat.value("chatrpc_usage_missing_total", stream="true") == 2


async def test_a_rejection_of_stream_options_concerns_one_model(chat: Service, echo: Echo) -> None:
    for model in ("echo:reject_usage", "echo", "echo:reject_usage"):
        await collect(chat.stub.CreateChatCompletionStream(request(model=model)))
    seen = [(received.body["model"], "stream_options" in received.body) for received in echo.requests]
    old, new = "echo:reject_usage", "echo"
    assert seen == [(old, True), (old, False), (new, True), (old, False)]
    assert chat.value("chatrpc_usage_missing_total", stream="true") == 2


async def test_only_chunks_become_messages(script: Script) -> None:
    body = (
        b"\xef\xbb\xbf: OPENROUTER PROCESSING\r\n\r\n:\r\n\r\ndata:"
        + chunk("a")
        + b"\r\n\r\nevent: ping\r\ndata:\r\n\r\n"
        b"id: 7\r\nretry: 10\r\ndata:  " + END + b"\r\n\r\ndata: [DONE]\r\n\r\ndata: after the end\r\n\r\n"
    )
    script.respond_with(http(body, content_type="text/event-stream; charset=utf-8"))
    async with service(script.base_url) as chat:
        chunks = await collect(chat.stub.CreateChatCompletionStream(request()))
    assert len(chunks) == 2


async def test_no_gap_after_done_is_too_long(script: Script) -> None:
    """The end of the response may come later; the service waits for it so that it can reuse the connection."""

    async def respond(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, http_chunk(b"data: " + chunk("a") + b"\n\ndata: [DONE]\n\n"))
        await exchange.closed_by_peer()

    script.respond_with(respond)
    async with service(script.base_url, upstream={"chunk_gap_timeout_seconds": 0.01}) as chat:
        assert len(await collect(chat.stub.CreateChatCompletionStream(request()))) == 1


async def test_parallel_tool_calls_without_index_stay_separate(script: Script) -> None:
    def call(name: str) -> dict[str, object]:
        return {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": {"x": 1}}}

    deltas = [{"choices": [{"index": 0, "delta": {"tool_calls": [call(name)]}}]} for name in ("a", "b")]
    script.respond_with(sse(*(json.dumps(delta).encode() for delta in deltas), END))
    async with service(script.base_url) as chat:
        chunks = await collect(chat.stub.CreateChatCompletionStream(request()))
    calls = [call for c in chunks for choice in c.choices for call in choice.delta.tool_calls]
    assert [(c.index, c.id, c.function.arguments) for c in calls] == [
        (0, "call_a", '{"x":1}'),
        (1, "call_b", '{"x":1}'),
    ]


async def test_connections_are_reused(script: Script) -> None:
    """After a unary response, and after a stream with [DONE] and the end of its body."""
    stream = STREAM_HEAD + http_chunk(b"data: " + END + b"\n\ndata: [DONE]\n\n") + b"0\r\n\r\n"
    response = http(b'{"choices": []}')
    script.respond_with(stream, response, stream, response)
    async with service(script.base_url) as chat:
        for _ in range(2):
            await collect(chat.stub.CreateChatCompletionStream(request()))
            await rested(chat)
            await chat.stub.CreateChatCompletion(request())
            await rested(chat)
    assert (len(script.exchanges), script.connections) == (4, 1)


@pytest.mark.parametrize("engine", ["builtin", "httpx"])
async def test_every_http_client_streams(script: Script, engine: str) -> None:
    """Chunk by chunk: the upstream sends the second one after the caller has the first."""
    first = asyncio.Event()

    async def respond(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, http_chunk(b"data: " + chunk("a") + b"\n\n"))
        await first.wait()
        await exchange.send(http_chunk(b"data: " + END + b"\n\ndata: [DONE]\n\n"), b"0\r\n\r\n")

    script.respond_with(respond)
    async with service(script.base_url, upstream={"http_client": engine}) as chat, asyncio.timeout(10):
        async for message in chat.stub.CreateChatCompletionStream(request()):
            first.set()
            finish_reason = message.choices[0].finish_reason
    assert finish_reason == "stop"


async def test_two_hundred_streams_at_once(echo: Echo) -> None:
    """No limit of connections delays one stream for another."""
    async with service(echo.base_url) as chat, asyncio.timeout(30):
        calls = [chat.stub.CreateChatCompletionStream(request(model="echo:first=1,pieces=5")) for _ in range(200)]
        outcomes = await asyncio.gather(*map(collect, calls))
        text = {"".join(c.delta.content for chunk in response for c in chunk.choices) for response in outcomes}
    assert text == {"1 2 3 4 5"}


async def test_a_slow_reader_is_not_a_silent_upstream(script: Script) -> None:
    goes_on = asyncio.Event()

    async def respond(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, http_chunk(b"data: " + chunk("a") + b"\n\n"))
        await goes_on.wait()
        await exchange.send(http_chunk(b"data: " + END + b"\n\ndata: [DONE]\n\n"), b"0\r\n\r\n")

    script.respond_with(respond)
    settings = UpstreamSettings(
        base_url=script.base_url, first_chunk_timeout_seconds=0.3, chunk_gap_timeout_seconds=0.3
    )
    upstream = OpenAIUpstream(settings, AttemptMetrics(Metrics(RPCS, [settings.name])))
    call = Call(id="1", method="CreateChatCompletionStream", started=0, deadline=0)
    async with aclosing(upstream.stream(request(), call)) as batches:
        assert await anext(batches)
        await asyncio.sleep(0.5)
        goes_on.set()
        assert [batch async for batch in batches]
    await upstream.aclose()


async def test_a_slow_reader_stops_the_reads_from_the_upstream(script: Script) -> None:
    """The upstream fills only the buffers on the way, and everything arrives in the end."""
    sent = 0
    piece = chunk("x" * 100_000)

    async def respond(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(STREAM_HEAD)
        for _ in range(400):
            await exchange.send(http_chunk(b"data: " + piece + b"\n\n"))
            sent += len(piece)
        await exchange.send(http_chunk(b"data: " + END + b"\n\ndata: [DONE]\n\n"), b"0\r\n\r\n")

    script.respond_with(respond)
    async with service(script.base_url) as chat, asyncio.timeout(30):
        call = chat.stub.CreateChatCompletionStream(request())
        messages = aiter(call)
        received = len((await anext(messages)).choices[0].delta.content)
        before = -1
        while sent != before:  # until no more bytes move
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 25_000_000
        async for message in messages:
            received += len(message.choices[0].delta.content)
    assert received == 40_000_000
