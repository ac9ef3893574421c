"""clients/python against a running service: its calls, its errors and its arguments."""

import asyncio
import base64
import copy
import json
import pickle
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.protobuf.message import Message

from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc.v1.chat_response_pb2 import (
    AudioDelta,
    ChunkChoice,
    CreateChatCompletionStreamResponse,
    Delta,
    FunctionCallDelta,
    ToolCallDelta,
)
from chatrpc_client import (
    AsyncClient,
    CancelledError,
    ChatError,
    Client,
    DeadlineError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    RateLimitError,
    Snapshot,
    UnavailableError,
)
from chatrpc_echo import Echo
from chatrpc_server.core.openai.assemble import assemble
from chatrpc_server.core.openai.responses import StreamReader
from support import Script, Service, collect, http, service

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello!"}]
QUIRKS = sorted((Path(__file__).parents[2] / "fixtures" / "quirks").glob("*.sse"))


@pytest.fixture
def client(chat: Service) -> Iterator[Client]:
    with Client(str(chat.server.address)) as client:
        yield client


@pytest.fixture
async def async_client(chat: Service) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(str(chat.server.address)) as client:
        yield client


def streamed(client: Client, **arguments: Any) -> Snapshot:
    with client.stream(**arguments) as stream:
        for _ in stream:
            pass
    return stream.snapshot


@pytest.mark.parametrize("limited", [False, True])
async def test_metadata(script: Script, limited: bool) -> None:
    limits = {"x_request_id": "theirs", "x_ratelimit_remaining_tokens": "9"} if limited else {}
    body = b'{"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}'
    script.respond_with(http(body, **limits))
    arguments: dict[str, Any] = {"model": "m", "messages": HELLO, "extra_headers": {"x-request-id": "ours"}}
    async with service(script.base_url) as chat, AsyncClient(str(chat.server.address)) as client:
        response, metadata = await client.complete_with_metadata(**arguments)
        async with client.stream(**arguments) as stream:
            found = [metadata, await stream.metadata()]
        with Client(str(chat.server.address)) as blocking:
            result, metadata = await asyncio.to_thread(blocking.complete_with_metadata, **arguments)
            with blocking.stream(**arguments) as streamed:
                found += [metadata, await asyncio.to_thread(streamed.metadata)]
    assert response.choices[0].message.content == result.choices[0].message.content == "hi"
    for metadata in found:
        assert metadata.request_id == metadata["x-request-id"] == "ours"
        assert metadata.upstream_request_id == ("theirs" if limited else "")
        assert metadata.rate_limits == ({"remaining-tokens": "9"} if limited else {})


async def test_complete(client: Client, async_client: AsyncClient) -> None:
    for response in (
        await asyncio.to_thread(client.complete, model="echo", messages=HELLO, temperature=0.2),
        await async_client.complete(model="echo", messages=HELLO, temperature=0.2),
    ):
        assert response.choices[0].message.content == "You said: Hello!"
        assert response.usage.total_tokens > 0


async def test_stream(client: Client, async_client: AsyncClient) -> None:
    def pieces() -> list[str]:
        with client.stream(model="echo:pieces=3", messages=HELLO) as stream:
            return [*stream.text_stream()]

    assert "".join(await asyncio.to_thread(pieces)) == "1 2 3"
    async with async_client.stream(model="echo:pieces=3", messages=HELLO) as stream:
        assert "".join([text async for text in stream.text_stream()]) == "1 2 3"
    assert (stream.snapshot.text, stream.snapshot.finish_reasons) == ("1 2 3", {0: "stop"})
    assert stream.snapshot.usage
    assert stream.snapshot.usage.completion_tokens == 3
    assert stream.snapshot.message == ChatMessage(role="assistant", content="1 2 3")


async def test_a_stream_assembles_to_the_unary_response(client: Client) -> None:
    arguments = {"model": "echo", "messages": HELLO, "n": 2, "logprobs": True, "reasoning_effort": "low"}
    unary = await asyncio.to_thread(client.complete, **arguments)
    assembled = (await asyncio.to_thread(streamed, client, **arguments)).response
    assembled.id = unary.id
    assert assembled == unary


@pytest.mark.parametrize("quirk", QUIRKS, ids=[quirk.stem for quirk in QUIRKS])
def test_client_and_service_assemble_streams_alike(quirk: Path) -> None:
    """The service assembles a stream that it received for a unary call. Both results must be equal."""
    reader = StreamReader(1 << 20)
    snapshot = Snapshot()
    snapshot.chunks += [*reader.feed(quirk.read_bytes()), *reader.finish()]
    expected, seen = assemble(snapshot.chunks), snapshot.response
    expected.choices.sort(key=lambda choice: choice.index)
    expected.object = seen.object
    assert normalised(seen) == normalised(expected)


def pieces(count: int, kind: str) -> list[CreateChatCompletionStreamResponse]:
    """Return a stream of that many pieces."""
    deltas = {
        "text": Delta(content="abcd"),
        "arguments": Delta(tool_calls=[ToolCallDelta(function=FunctionCallDelta(arguments="abcd"))]),
        "reasoning_details": Delta(extra_json='{"reasoning_details":[{"text":"abcd"}]}'),
        "audio": Delta(audio=AudioDelta(data="ZWY=")),
    }
    chunk = CreateChatCompletionStreamResponse(id="c", choices=[ChunkChoice(delta=deltas[kind])])
    return [chunk] * count


@pytest.mark.parametrize("kind", ["text", "arguments", "reasoning_details", "audio"])
def test_time_and_memory_of_a_snapshot_are_linear(kind: str) -> None:
    def seconds(chunks: list[CreateChatCompletionStreamResponse]) -> float:
        best = float("inf")
        for _ in range(3):
            snapshot, started = Snapshot(), time.process_time()
            snapshot.chunks += chunks
            assert len(snapshot.response.choices) == 1
            best = min(best, time.process_time() - started)
        return best

    count = 3000
    small, large = pieces(count, kind), pieces(2 * count, kind)
    assert any(seconds(large) < 3 * seconds(small) for _ in range(5))  # one try can meet a busy machine
    snapshot = Snapshot()
    tracemalloc.start()
    try:
        for chunk in pieces(10_000, kind):
            snapshot.chunks.append(chunk)
            _ = snapshot.usage  # reads the chunks that have arrived
        assert snapshot.response.choices
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_name_in_pieces() -> None:
    snapshot = Snapshot()
    for delta in (
        Delta(tool_calls=[ToolCallDelta(id="a", function=FunctionCallDelta(name="get_"))]),
        Delta(tool_calls=[ToolCallDelta(function=FunctionCallDelta(name="weather", arguments="{"))]),
        Delta(tool_calls=[ToolCallDelta(function=FunctionCallDelta(arguments="}"))]),
        Delta(function_call=FunctionCallDelta(name="a")),
        Delta(function_call=FunctionCallDelta(name="b")),
    ):
        snapshot.chunks.append(CreateChatCompletionStreamResponse(choices=[ChunkChoice(delta=delta)]))
    (call,) = snapshot.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", "{}")
    assert snapshot.message.function_call.name == "ab"


EXTRAS: dict[str, tuple[list[str], str]] = {
    # name: (extra_json of each delta, that of the message)
    "numbers as written": (
        ['{"a":1e400,"b":12345678901234567890123}', '{"c":-0.10}'],
        '{"a":1e400,"b":12345678901234567890123,"c":-0.10}',
    ),
    "many digits": (['{"a":%s}' % ("9" * 5000), "{}"], '{"a":%s}' % ("9" * 5000)),
    "lists grow": (['{"a":[1e400]}', '{"a":[]}', '{"a":[ {"b":[2]} ,3]}'], '{"a":[1e400, {"b":[2]} ,3]}'),
    "empty lists": (['{"a":[]}', '{"a":[ ]}'], '{"a":[]}'),
    "a list and a text": (['{"a":[1]}', '{"a":"x"}', '{"a":[2]}'], '{"a":[2]}'),
    "the newest": (['{"a":1,"b":"}"}', '{"a":{"c":",]"},"d":null}'], '{"a":{"c":",]"},"b":"}","d":null}'),
    "blanks": ([' { "a" : 1 , "b" : [ 1 ] } ', '{"b":[2]}'], '{"a":1,"b":[ 1 ,2]}'),
    "odd keys": (['{"\\"\\u00e9":1}', '{"":2}'], '{"\\"\\u00e9":1,"":2}'),
    "nothing": (["{}", " { } "], "{}"),
}


@pytest.mark.parametrize(("deltas", "expected"), EXTRAS.values(), ids=EXTRAS)
def test_extras_are_merged_as_texts(deltas: list[str], expected: str) -> None:
    snapshot = Snapshot()
    for extra_json in deltas:
        choice = ChunkChoice(delta=Delta(extra_json=extra_json))
        snapshot.chunks.append(CreateChatCompletionStreamResponse(choices=[choice]))
    assert snapshot.message.extra_json == expected


def test_chunks_of_a_snapshot_are_a_sequence() -> None:
    snapshot = Snapshot()
    assert (len(snapshot.chunks), snapshot.text, snapshot.usage, snapshot.finish_reasons) == (0, "", None, {})
    chunks = [
        CreateChatCompletionStreamResponse(choices=[ChunkChoice(index=index, delta=Delta(content=text))])
        for index, text in [(0, "a"), (1, "x"), (0, "b")]
    ]
    for number, text in enumerate(["a", "a", "ab"]):
        snapshot.chunks.append(chunks[number])
        assert snapshot.text == text
    assert (list(snapshot.chunks), snapshot.chunks[-1], snapshot.chunks[:2]) == (chunks, chunks[2], chunks[:2])
    assert [choice.message.content for choice in snapshot.response.choices] == ["ab", "x"]


def normalised(message: Message) -> Message:
    """Return the message with its JSON texts in one normal form."""
    for field, value in message.ListFields():
        if field.name == "extra_json":
            message.extra_json = json.dumps(json.loads(value))  # type: ignore[attr-defined]
        elif isinstance(value, Message):
            normalised(value)
        elif field.is_repeated and field.message_type:
            for item in value:
                normalised(item)
    return message


async def test_a_conversation_with_tools(client: Client) -> None:
    tool = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    arguments: dict[str, Any] = {"model": "echo", "tools": [tool], "tool_choice": "required"}
    snapshot = await asyncio.to_thread(streamed, client, messages=HELLO, **arguments)
    (call,) = snapshot.message.tool_calls
    assert (call.type, call.function.name, snapshot.finish_reasons) == ("function", "weather", {0: "tool_calls"})
    assert isinstance(json.loads(call.function.arguments), dict)
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    messages = [*HELLO, snapshot.message, result]
    response = await asyncio.to_thread(client.complete, model="echo", messages=messages)
    assert response.choices[0].message.content


async def test_a_picture_of_5_mib(client: Client, echo: Echo) -> None:
    url = f"data:image/png;base64,{base64.b64encode(bytes(5 << 20)).decode()}"
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    await asyncio.to_thread(client.complete, model="echo", messages=[{"role": "user", "content": parts}])
    assert echo.requests[-1].body["messages"][0]["content"] == parts


async def test_parameters_reach_the_upstream(client: Client, echo: Echo) -> None:
    given: dict[str, Any] = {
        "temperature": 0.7,
        "stop": ["a", "b"],
        "seed": 1 << 40,
        "logit_bias": {"50256": -100},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        "metadata": {"a": "b"},
        "top_k": 40,
        "chat_template_kwargs": {"thinking": None},
    }
    extra = {"extra_body": {"min_p": 0.1, "max_tokens": 9}, "extra_headers": {"X-Request-Id": "mine"}, "user": None}
    await asyncio.to_thread(client.complete, model="echo", messages=HELLO, **given, **extra)
    received = echo.requests[-1]
    assert received.body == {"model": "echo", "messages": HELLO, **given, **extra["extra_body"]}
    assert received.headers["x-request-id"] == "mine"


ERRORS: dict[str, tuple[type[ChatError], str]] = {
    "echo:status=400": (InvalidRequestError, "UPSTREAM_INVALID_REQUEST"),
    "echo:code=context_length_exceeded": (InvalidRequestError, "UPSTREAM_CONTEXT_LENGTH_EXCEEDED"),
    "echo:code=model_not_found": (NotFoundError, "UPSTREAM_MODEL_NOT_FOUND"),
    "echo:status=403": (PermissionDeniedError, "UPSTREAM_FORBIDDEN"),
    "echo:status=402": (PreconditionError, "UPSTREAM_INSUFFICIENT_BALANCE"),
    "echo:status=409": (PreconditionError, "UPSTREAM_CONFLICT"),
    "echo:status=429,retry_after=7": (RateLimitError, "UPSTREAM_RATE_LIMITED"),
    "echo:status=401": (InternalError, "UPSTREAM_UNAUTHENTICATED"),
    "echo:status=503": (UnavailableError, "UPSTREAM_OVERLOADED"),
    "echo:status=504": (DeadlineError, "UPSTREAM_TIMEOUT"),
}


@pytest.mark.parametrize(("model", "expected"), ERRORS.items(), ids=ERRORS)
async def test_errors_are_typed(client: Client, async_client: AsyncClient, model: str, expected: Any) -> None:
    kind, reason = expected
    errors = []
    with pytest.raises(ChatError) as raised:
        await asyncio.to_thread(client.complete, model=model, messages=HELLO, timeout=5)
    errors.append(raised.value)
    with pytest.raises(ChatError) as raised:
        await asyncio.to_thread(streamed, client, model=model, messages=HELLO, timeout=5)
    errors.append(raised.value)
    with pytest.raises(ChatError) as raised:
        await anext(async_client.stream(model=model, messages=HELLO, timeout=5))
    errors.append(raised.value)
    for error in errors:
        assert (type(error), error.reason) == (kind, reason)
        assert error.request_id
        assert error.upstream_status
        assert error.retry_after == (7 if "retry_after" in model else None)
        assert str(error).startswith(f"{error.code.name} ({reason}): ")
        assert "\n" not in str(error)


async def test_an_error_names_the_invalid_field(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        await asyncio.to_thread(client.complete, model="echo", messages=[{"role": "", "content": "?"}])
    assert raised.value.fields
    assert raised.value.fields[0][0] == "messages[0].role"
    assert raised.value.upstream_status is None


async def test_a_truncated_stream_keeps_its_messages(client: Client) -> None:
    with client.stream(model="echo:pieces=9,truncate=3", messages=HELLO) as stream:
        with pytest.raises(UnavailableError) as raised:
            await asyncio.to_thread(list, stream)
        assert raised.value.reason == "UPSTREAM_TRUNCATED"
    assert (stream.snapshot.text, stream.snapshot.finish_reasons) == ("1 2 3", {})


async def test_an_error_in_the_stream(client: Client) -> None:
    with pytest.raises(RateLimitError) as raised:
        await asyncio.to_thread(streamed, client, model="echo:error=2,code=rate_limit_exceeded", messages=HELLO)
    assert (raised.value.reason, raised.value.mapped_reason) == ("UPSTREAM_ERROR_BODY", "UPSTREAM_RATE_LIMITED")
    assert raised.value.upstream_status == 200


async def test_the_deadline_applies(client: Client, async_client: AsyncClient) -> None:
    with pytest.raises(DeadlineError):
        await asyncio.to_thread(client.complete, model="echo:delay=30", messages=HELLO, timeout=0.2)
    async with async_client.stream(model="echo:pieces=9,gap=30", messages=HELLO, timeout=0.5) as stream:
        with pytest.raises(DeadlineError):
            _ = [chunk async for chunk in stream]
    assert stream.snapshot.text == "1 2"


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_leaving_a_stream_cancels_it(
    chat: Service, client: Client, async_client: AsyncClient, asynchronous: bool
) -> None:
    if asynchronous:
        async with async_client.stream(model="echo:pieces=99,pace=0.1", messages=HELLO) as stream:
            await anext(stream)
    else:
        with client.stream(model="echo:pieces=99,pace=0.1", messages=HELLO) as stream:
            await asyncio.to_thread(next, stream)
    async with asyncio.timeout(5):
        while not chat.value("chatrpc_streams_ended_total", outcome="client_cancel"):
            await asyncio.sleep(0.01)


async def test_a_failed_async_stream_keeps_failing(async_client: AsyncClient) -> None:
    """grpc.aio itself would end the iteration at the next read, as if the response were complete."""
    stream = async_client.stream(model="echo:pieces=9,gap=30", messages=HELLO)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            _ = [chunk async for chunk in stream]
    with pytest.raises(CancelledError) as raised:
        await anext(stream)
    assert raised.value.request_id  # from the initial metadata, because a cancelled call has no trailers
    stream = async_client.stream(model="echo:pieces=9,truncate=2", messages=HELLO)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="UPSTREAM_TRUNCATED"):
            _ = [chunk async for chunk in stream]


async def test_closing_from_another_task_is_no_task_cancellation(chat: Service) -> None:
    client = AsyncClient(str(chat.server.address))
    stream = client.stream(model="echo:pieces=9,gap=30", messages=HELLO)
    await anext(stream)
    readers = [
        asyncio.create_task(collect(stream)),
        asyncio.create_task(client.complete(model="echo:delay=30", messages=HELLO)),
    ]
    await asyncio.sleep(0.3)
    await stream.close()
    await client.close()
    for reader in readers:
        with pytest.raises(CancelledError):
            await reader


async def test_cancelling_the_task_cancels_the_call(chat: Service, async_client: AsyncClient) -> None:
    calls = [
        asyncio.create_task(async_client.complete(model="echo:delay=30", messages=HELLO)),
        asyncio.create_task(collect(async_client.stream(model="echo:delay=30", messages=HELLO))),
    ]
    await asyncio.sleep(0.3)
    for call in calls:
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    async with asyncio.timeout(5):
        while chat.value("grpc_server_handled_total", grpc_code="Canceled") < 2:
            await asyncio.sleep(0.01)


async def test_a_closed_client_rejects_calls(chat: Service) -> None:
    client, async_client = Client(str(chat.server.address)), AsyncClient(str(chat.server.address))
    client.close()
    await async_client.close()
    with pytest.raises(ValueError, match="closed"):
        client.complete(model="echo", messages=HELLO)
    with pytest.raises(ValueError, match="closed"):
        await async_client.complete(model="echo", messages=HELLO)


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
async def test_errors_can_be_copied_and_pickled(client: Client, copied: Any) -> None:
    with pytest.raises(RateLimitError) as raised:
        await asyncio.to_thread(client.complete, model="echo:status=429,retry_after=7", messages=HELLO, timeout=5)
    copy_ = copied(raised.value)
    assert type(copy_) is RateLimitError
    for name in ("code", "message", "reason", "retry_after", "request_id", "upstream", "upstream_status"):
        assert getattr(copy_, name) == getattr(raised.value, name)


async def test_calls_spread_and_survive_the_stop_of_one_server(echo: Echo) -> None:
    async with service(echo.base_url) as one, service(echo.base_url) as two:
        addresses = f"ipv4:{one.server.address},{two.server.address}"
        async with AsyncClient(addresses, timeout=5) as client:
            for _ in range(20):
                await client.complete(model="echo", messages=HELLO)
            counts = [
                each.value("grpc_server_started_total", grpc_method="CreateChatCompletion") for each in (one, two)
            ]
            assert min(counts) >= 5
            await one.server.stop()
            for _ in range(20):
                await client.complete(model="echo", messages=HELLO)


async def test_grpc_retries_an_unavailable_service(script: Script) -> None:
    """The service itself does not retry here, so that gRPC retries after the upstream's 503."""
    body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}}]}).encode()
    long = [{"role": "user", "content": "x" * (2 << 20)}]  # above 256 KiB, gRPC's default retry buffer
    script.respond_with(http(b"{}", status="503 Service Unavailable"), http(body))
    async with service(script.base_url, upstream={"max_retries": 0}) as running:
        async with AsyncClient(str(running.server.address), timeout=5) as client:
            response = await client.complete(model="m", messages=long)
        assert response.choices[0].message.content == "a"
        assert running.value("grpc_server_handled_total", grpc_code="Unavailable") == 1


async def test_no_server() -> None:
    with Client("127.0.0.1:1", timeout=5) as client, pytest.raises(UnavailableError) as raised:
        await asyncio.to_thread(client.complete, model="echo", messages=HELLO)
    assert (raised.value.reason, raised.value.request_id) == ("", "")


async def test_tls(echo: Echo, tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(tmp_path / "cert.pem", append=True)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    files = {"cert_file": str(tmp_path / "cert.pem"), "key_file": str(tmp_path / "key.pem")}
    async with service(echo.base_url, tls=files) as running:
        target = str(running.server.address)
        async with AsyncClient(target, tls=tmp_path / "ca.pem", api_key="secret", timeout=5) as client:
            assert await client.complete(model="echo", messages=HELLO)
        async with AsyncClient(target, tls=tmp_path / "other.pem", timeout=5) as client:
            with pytest.raises(UnavailableError, match=r"(?i)certificate|ssl|handshake"):
                await client.complete(model="echo", messages=HELLO)
    # A certificate of the client's own.
    async with service(echo.base_url, tls=files | {"client_ca_file": str(tmp_path / "ca.pem")}) as running:
        target, cert = str(running.server.address), (tmp_path / "cert.pem", tmp_path / "key.pem")
        async with AsyncClient(target, tls=tmp_path / "ca.pem", cert=cert, timeout=5) as client:
            assert await client.complete(model="echo", messages=HELLO)
        async with AsyncClient(target, tls=tmp_path / "ca.pem", timeout=5) as client:
            with pytest.raises(UnavailableError):
                await client.complete(model="echo", messages=HELLO)
    with pytest.raises(ValueError, match="cert: is given beside credentials"):
        Client(target, tls=grpc.ssl_channel_credentials(), cert=cert)
    with pytest.raises(OSError, match=r"no\.pem"):
        Client(target, cert=(tmp_path / "no.pem", tmp_path / "key.pem"))
