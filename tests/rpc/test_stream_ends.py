"""The ends of streams on the wire: what follows the finish, and connections that the upstream keeps open.

The rules themselves are tested without a connection, in tests/unit/test_choices.py and test_heartbeats.py.
"""

import asyncio
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
import pytest

from chatrpc.v1.chat_request_pb2 import StreamOptions
from chatrpc_server.upstream import openai
from chatrpc_server.upstream.idle_timeout import IdleTimeout
from support import Exchange, Outcome, Responder, Script, Service, failure, outcome, request, service
from support.http_clients import engines

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
SHORT_SECONDS, HANG_SECONDS = 0.05, 30

RPCS = pytest.mark.parametrize("rpc", ["CreateChatCompletion", "CreateChatCompletionStream"])


def event(source: Any) -> bytes:
    return b"data: " + json.dumps(source).encode() + b"\n\n"


def choice(content: str = "", finish_reason: str | None = None, index: int = 0) -> bytes:
    delta = {"content": content} if content else {}
    return event({"id": "c", "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]})


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


TEXT = choice("Hel") + choice("lo")
USAGE = event({"id": "c", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}})
FINISH = choice(finish_reason="stop")


def upstream(engine: str, **settings: Any) -> dict[str, Any]:
    """Return settings with short times for a finished stream, and times that never pass for another one."""
    times = {"first_chunk_timeout_seconds": 2 * HANG_SECONDS, "chunk_gap_timeout_seconds": 2 * HANG_SECONDS}
    return {"http_client": engine, "finished_timeout_seconds": SHORT_SECONDS, "max_retries": 0, **times, **settings}


def text_of(messages: list[Any]) -> str:
    """Return the text of choice 0."""
    choices = [choice for message in messages for choice in message.choices if choice.index == 0]
    return "".join((choice.delta if hasattr(choice, "delta") else choice.message).content for choice in choices)


class KeptOpen:
    """A response whose connection stays open, silent or with heartbeats."""

    def __init__(self, *pieces: bytes, heartbeat: bytes = b"") -> None:
        self._pieces, self._heartbeat = pieces, heartbeat
        self.closed = asyncio.Event()
        """Set when the service has closed the connection."""

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.send(CHUNKED, *map(framed, self._pieces))
        try:
            while self._heartbeat and not exchange.reader.at_eof():
                await exchange.send(framed(self._heartbeat))
                await asyncio.sleep(SHORT_SECONDS / 10)
            await exchange.closed_by_peer()
        except ConnectionError:
            pass
        self.closed.set()

    async def wait_closed(self) -> None:
        async with asyncio.timeout(HANG_SECONDS):
            await self.closed.wait()
        self.closed.clear()


def by_prompt(responses: Mapping[str, Responder]) -> Responder:
    """Return a responder that chooses by the text of the request."""

    async def respond(exchange: Exchange) -> None:
        await responses[json.loads(exchange.body)["messages"][0]["content"]](exchange)

    return respond


async def outcomes(chat: Service, rpc: str, names: Iterable[str]) -> dict[str, Outcome]:
    """Call with each name as the text, all at once."""
    names = list(names)
    calls = [getattr(chat.stub, rpc)(request(name), timeout=HANG_SECONDS) for name in names]
    return dict(zip(names, await asyncio.gather(*map(outcome, calls)), strict=True))


KEPT_OPEN = {
    "finish": (TEXT + FINISH,),
    "finish and usage": (TEXT + FINISH + USAGE,),
    "usage without blank line": (TEXT + FINISH + USAGE[:-1],),
    "half an event": (TEXT + FINISH + USAGE[:-9],),
    "[DONE]": (TEXT + FINISH + USAGE + b"data: [DONE]\n\n",),
    "[DONE] only": (TEXT + b"data: [DONE]\n\n",),
    "quoted": (TEXT + b'data: "[DONE]"\n\n',),
    "an error": (TEXT + FINISH + event({"error": {"message": "m", "code": 500}}),),
    "two choices": (TEXT + choice("b", index=1) + FINISH, choice(finish_reason="length", index=1)),
    "finished again": (choice("Hel", "stop") + choice("lo", "stop"),),
}


@engines
@RPCS
async def test_a_finished_stream_needs_no_end(script: Script, rpc: str, name: str) -> None:
    """The call succeeds; its connection closes at once, and is not used again."""
    responses = {
        f"{case}, {heartbeat!r}": KeptOpen(*pieces, heartbeat=heartbeat)
        for case, pieces in KEPT_OPEN.items()
        for heartbeat in (b"", b": ping\n\n", b'data: {"type": "ping"}\n\n')
    }
    with_usage = {case for case in responses if any(USAGE[:-1] in part for part in KEPT_OPEN[case.rpartition(", ")[0]])}
    script.respond_with(by_prompt(responses))
    async with service(script.base_url, upstream=upstream(name)) as chat:
        for times in (1, 2):
            ended = await outcomes(chat, rpc, responses)
            for response in responses.values():
                await response.wait_closed()
            assert {
                case: text_of(end.messages) for case, end in ended.items() if text_of(end.messages) != "Hello"
            } == {}
            assert {case: end.code for case, end in ended.items() if end.code is not grpc.StatusCode.OK} == {}
            assert {case for case, end in ended.items() for m in end.messages if m.HasField("usage")} == with_usage
            assert script.connections == times * len(responses)
        await chat.wait_for(4 * len(with_usage), "chatrpc_tokens_total", gen_ai_token_type="output")


CUTS = {
    "closed": (CHUNKED, b"", False),
    "reset": (CHUNKED, b"", True),
    "a size that is no number": (CHUNKED, b"zz\r\n", False),
    "half a chunk": (CHUNKED, b"40\r\ndata: x", False),
    "half a chunk, reset": (CHUNKED, b"40\r\ndata: x", True),
    "a length that is too long": (HEAD + b"content-length: 100000\r\n\r\n", b"", False),
    "no framing": (HEAD + b"connection: close\r\n\r\n", b"", False),
    "garbage after the end": (CHUNKED, b"0\r\n\r\nHTTP/1.1 500 x\r\n\r\n", False),
}


class Cut:
    """A response that breaks off in one of these ways, with TLS without a close_notify."""

    def __init__(self, data: bytes, head: bytes, end: bytes, is_reset: bool) -> None:
        self._data, self._head, self._end, self._is_reset = data, head, end, is_reset

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.send(self._head, framed(self._data) if self._head is CHUNKED else self._data)
        await asyncio.sleep(SHORT_SECONDS)  # so that the service reads the data first
        await exchange.send(self._end)
        exchange.reset() if self._is_reset else exchange.writer.close()


@engines
@RPCS
async def test_a_cut_fails_only_an_unfinished_stream(
    any_script: tuple[Script, dict[str, Any]], rpc: str, name: str
) -> None:
    script, tls = any_script
    finished, unfinished = TEXT + FINISH + USAGE, TEXT + choice("b", index=1) + FINISH
    responses = {
        f"{case}, {'finished' if data is finished else 'unfinished'}": Cut(data, *how)
        for case, how in CUTS.items()
        for data in (finished, unfinished)
    }
    script.respond_with(by_prompt(responses))
    async with service(script.base_url, upstream=upstream(name, finished_timeout_seconds=HANG_SECONDS, **tls)) as chat:
        ended = await outcomes(chat, rpc, responses)
    expected = {case: "" if ", finished" in case else "UPSTREAM_TRUNCATED" for case in responses}
    invalid = "a size that is no number, unfinished"
    expected[invalid] = "UPSTREAM_INVALID_RESPONSE"
    assert {case: end.reason for case, end in ended.items()} == expected
    assert {text_of(end.messages) for case, end in ended.items() if ", finished" in case} == {"Hello"}


@RPCS
@pytest.mark.parametrize("is_whole", [True, False], ids=["one of two finished", "one of two began"])
async def test_a_missing_choice_is_waited_for(script: Script, is_whole: bool, rpc: str) -> None:
    """It gets the time of a gap; then the choices that have come are the completion, if they have finished."""
    respond = KeptOpen(TEXT + FINISH + (b"" if is_whole else choice("b", index=1)))
    script.respond_with(respond)
    settings = upstream("builtin", chunk_gap_timeout_seconds=SHORT_SECONDS, finished_timeout_seconds=HANG_SECONDS)
    async with service(script.base_url, upstream=settings) as chat:
        timeout = HANG_SECONDS if is_whole or rpc.endswith("Stream") else 10 * SHORT_SECONDS
        ended = await outcome(getattr(chat.stub, rpc)(request(n=2), timeout=timeout))
        await respond.wait_closed()
    assert (ended.code is grpc.StatusCode.OK) == is_whole


@RPCS
@pytest.mark.parametrize("is_declined", [True, False])
async def test_usage_after_the_finish_is_counted(script: Script, is_declined: bool, rpc: str) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.send(CHUNKED, framed(TEXT + FINISH))
        await asyncio.sleep(SHORT_SECONDS)
        await exchange.send(framed(USAGE + b"data: [DONE]\n\n"))
        await exchange.closed_by_peer()

    script.respond_with(respond)
    async with service(script.base_url, upstream=upstream("builtin", finished_timeout_seconds=HANG_SECONDS)) as chat:
        options = StreamOptions(include_usage=False) if is_declined and rpc.endswith("Stream") else None
        ended = await outcome(getattr(chat.stub, rpc)(request(stream_options=options)))
        assert (ended.code, text_of(ended.messages)) == (grpc.StatusCode.OK, "Hello")
        assert any(message.HasField("usage") for message in ended.messages) == (options is None)
        await chat.wait_for(2, "chatrpc_tokens_total", gen_ai_token_type="output")


@pytest.mark.parametrize("are_alive", [True, False])
async def test_comments_restart_the_wait_if_they_are_alive(
    script: Script, are_alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: asyncio.Queue[float] = asyncio.Queue()

    class Timeout(IdleTimeout):
        def arm(self, seconds: float) -> None:
            waits.put_nowait(seconds)
            super().arm(seconds)

    async def respond(exchange: Exchange) -> None:
        await exchange.send(CHUNKED)
        for piece in (b"", TEXT):
            if piece:
                await exchange.send(framed(piece))
            for comment in (b": ping\n\n", b"data: ping\n\n", b":"):
                if are_alive:
                    seen.append(await waits.get())
                await exchange.send(framed(comment))
        await exchange.send(framed(b"\n\n" + FINISH), b"0\r\n\r\n")

    seen: list[float] = []
    monkeypatch.setattr(openai, "IdleTimeout", Timeout)
    script.respond_with(respond)
    times = {"first_chunk_timeout_seconds": 50, "chunk_gap_timeout_seconds": 40, "comments_are_alive": are_alive}
    async with service(script.base_url, upstream=upstream("builtin", **times)) as chat:
        ended = await outcome(chat.stub.CreateChatCompletionStream(request(), timeout=HANG_SECONDS))
    assert ended.code is grpc.StatusCode.OK
    while not waits.empty():
        seen.append(waits.get_nowait())
    runs = [(seconds, len(list(run))) for seconds, run in itertools.groupby(seen)]
    if are_alive:
        assert [seconds for seconds, _ in runs] == [50, 40]
        assert all(count >= 3 for _, count in runs)
    else:
        assert all(count == 1 for _, count in runs)


async def test_an_unfinished_stream_that_falls_silent_is_a_timeout(script: Script) -> None:
    respond = KeptOpen(TEXT, heartbeat=b": ping\n\n")
    script.respond_with(respond)
    settings = upstream("builtin", chunk_gap_timeout_seconds=SHORT_SECONDS)
    async with service(script.base_url, upstream=settings) as chat:
        ended = await failure(chat.stub.CreateChatCompletionStream(request(), timeout=HANG_SECONDS))
        await respond.wait_closed()
    assert (ended.reason, text_of(ended.messages)) == ("UPSTREAM_TIMEOUT", "Hello")
