"""Ends and heartbeats of streams, as tables: each form of the end by each heartbeat by each place of it."""

import json
from typing import Any

import pytest

from chatrpc.v1.chat_response_pb2 import Usage
from chatrpc_server.core.errors import ErrorResponse, InvalidResponse, Truncated
from chatrpc_server.core.openai import heartbeats
from chatrpc_server.core.openai.responses import StreamReader
from chatrpc_server.core.upstream import ChatChunk

LIMIT = 4096


def event(source: Any) -> bytes:
    return b"data: " + json.dumps(source).encode() + b"\n\n"


def text(content: str) -> bytes:
    return event({"id": "c", "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]})


FINISH = event({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
USAGE = event({"id": "c", "choices": [], "usage": {"total_tokens": 3}})
WHOLE = (text("Hel"), text("lo"), FINISH, USAGE)

MARKS = (
    *(
        "[DONE]",
        " [DONE] ",
        "\t[DONE]",
        "[done]",
        "[Done]",
        "[DONE] bye",
        "DONE",
        "done",
        " DONE",
        "<DONE>",
        "[ DONE ]",
    ),
    *('"[DONE]"', '"DONE"', "'[DONE]'", '["DONE"]', '["[DONE]"]', '"\\"[DONE]\\""', "[[DONE]]"),
    *("[END]", "END", '"[END]"', "[end]", "[EOF]", "EOF"),
)
HEARTBEATS = {
    **{
        f"data {data!r}": f"data: {data}\n\n".encode()
        for data in (
            *("ping", "[PING]", '"ping"', "pong", "PING", ": ping", "keep-alive", "[KEEP_ALIVE]", "heartbeat"),
            *(
                "null",
                "true",
                "0",
                "1722470400",
                "1722470400.123",
                '""',
                "[]",
                " ",
                "\t",
                "-",
                ".",
                "[HEARTBEAT]",
            ),
            *("2026-08-01T00:00:00Z", '"2026-08-01T00:00:00.000+00:00"', "Sat, 01 Aug 2026 00:00:00 GMT", "00:00:01"),
            *("OPENROUTER PROCESSING", "Waiting for the model ..."),
            *('["ping"]', '"keep-alive"', "\ufeff"),
        )
    },
    "comment": b": ping\n\n",
    "empty comment": b":\n\n",
    "empty data": b"data:\n\n",
    "data without colon": b"data\n\n",
    "blank lines": b"\n\n\r\n",
    "bare word": b"ping\n\n",
    **{
        f"event {name} {data!r}": f"event: {name}\ndata: {data}\n\n".encode()
        for name in ("ping", "heartbeat", "Heartbeat", "keepalive", "keep-alive")
        for data in (
            "",
            "null",
            "2026-08-01T00:00:00Z",
            "{}",
            '{"type": "ping"}',
            '{"cost":"0"}',
            "[1, {}]",
            "<p>",
            "{",
        )
    },
    **{
        f"event {name} {data!r}": f"event: {name}\ndata: {data}\n\n".encode()
        for name in ("end", "done", "close", "status")
        for data in ("null", "", "[1, {}]", "<closed>", "{broken", "x" * 100)
    },
    "event without data": b"event: ping\n\n",
    "two lines": b"data: ping\ndata: ping\n\n",
    "an object in two lines": b"event: ping\ndata: {\ndata: }\n\n",
    "id and retry": b"id: 1\nretry: 3000\n\n",
}


def read(*pieces: bytes) -> tuple[StreamReader, str, list[ChatChunk]]:
    reader = StreamReader(LIMIT)
    chunks = [chunk for piece in pieces for chunk in reader.feed(piece)]
    chunks += reader.finish()
    return reader, "".join(choice.delta.content for chunk in chunks for choice in chunk.choices), chunks


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("name", ["data: {}\n\n", "data:{}\n\n", "data: {}", "event: done\ndata: {}\n\n"])
def test_every_mark_of_the_end_ends_the_stream(mark: str, name: str) -> None:
    end = name.replace("{}", mark).encode()
    for begin, content in ((WHOLE, "Hello"), (WHOLE[:2], "Hello"), ((), "")):
        reader, received, _ = read(*begin, end, text("!"))
        if end.endswith(b"\n\n"):
            assert (reader.error, reader.done, received) == (None, True, content)
    reader, received, _ = read(b"".join((*WHOLE[:2], end)))
    assert (reader.error, reader.done, received) == (None, True, "Hello")


@pytest.mark.parametrize("heartbeat", HEARTBEATS.values(), ids=HEARTBEATS)
def test_no_heartbeat_fails_a_stream(heartbeat: bytes) -> None:
    """Between all chunks and in one read with them; a stream that is cut off stays truncated."""
    between = [piece for chunk in WHOLE for piece in (heartbeat, chunk)]
    for pieces in (between, [b"".join(between)]):
        for end in (b"", b"data: [DONE]\n\n", heartbeat + b"data: DONE\n\n"):
            reader, received, chunks = read(*pieces, end)
            assert (reader.error, received, len(chunks), reader.usage) == (None, "Hello", 4, Usage(total_tokens=3))
    reader, received, _ = read(*between[:4], heartbeat)
    assert isinstance(reader.error, Truncated)
    assert received == "Hello"


NO_HEARTBEATS = {
    "a page": (b"data: <html>\n\n", InvalidResponse),
    "a broken chunk": (b'data: {"choices":[{"index":0,"delta":{"content":"x"\n\n', InvalidResponse),
    "a broken chunk of a named event": (b'event: chunk\ndata: {"choices":[{"index"\n\n', InvalidResponse),
    "a chunk in a list": (b'data: [{"choices":[]}]\n\n', InvalidResponse),
    "a long text": (b"data: " + b"x" * 65 + b"\n\n", InvalidResponse),
    "an error in words": (b"data: Internal Server Error\n\n", InvalidResponse),
    "an error event": (b"event: error\ndata: ping\n\n", ErrorResponse),
    "an error event, null": (b"event: error\ndata: null\n\n", ErrorResponse),
    "an error object": (b'data: {"error": {"message": "m"}}\n\n', ErrorResponse),
    "an error object of another event": (b'event: note\ndata: {"error": "m"}\n\n', ErrorResponse),
}


@pytest.mark.parametrize(("data", "kind"), NO_HEARTBEATS.values(), ids=NO_HEARTBEATS)
def test_no_error_is_taken_for_a_heartbeat(data: bytes, kind: type[Exception]) -> None:
    reader, received, _ = read(*WHOLE[:2], data, *WHOLE[2:])
    assert isinstance(reader.error, kind)
    assert received == "Hello"


@pytest.mark.parametrize("name", ["chunk", "message", "completion", "ping"])
def test_chunks_are_read_from_events_of_any_name(name: str) -> None:
    reader, received, _ = read(*(f"event: {name}\n".encode() + chunk for chunk in WHOLE))
    assert (reader.error, received) == (None, "Hello")


@pytest.mark.parametrize("name", ["", "event: cost\n"])
def test_an_object_is_forwarded(name: str) -> None:
    """Nothing that can have a meaning is lost, not even {"type": "keepalive"}."""
    _, _, chunks = read(f"{name}data: ".encode() + b'{"cost": 1}\n\n', *WHOLE)
    assert chunks[0] == ChatChunk(extra_json='{"cost":1}')


@pytest.mark.parametrize(
    ("text", "known"),
    {
        b"ping": True,
        b"[PING]": True,
        b'"keep-alive"': True,
        b"null": True,
        b"": True,
        b"1764547200": True,
        b"2026-12-01T04:00:00Z": True,
        b"no JSON": False,
        b"hello": False,
        b"\xff": False,
    }.items(),
)
def test_usual_heartbeats(text: bytes, known: bool) -> None:
    assert heartbeats.is_known(text) is known


def test_a_stream_of_words_is_no_response() -> None:
    reader, _, chunks = read(b"data: ping\n\ndata: hello\n\ndata: [DONE]\n\n")
    assert (chunks, reader.done) == ([], False)
    assert isinstance(reader.error, InvalidResponse)
    assert reader.error.kind == "bad_json"
    reader, _, chunks = read(b"data: ping\n\ndata: [DONE]\n\n")
    assert (chunks, reader.done, reader.error) == ([], True, None)
