"""One completion in every shape that servers send: each gives the same text to both RPCs as it arrives, however cut."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from chatrpc_server.core.errors import ErrorResponse, InvalidResponse, Reason, Truncated
from chatrpc_server.core.openai import jsontext, responses
from chatrpc_server.core.openai.responses import StreamReader
from chatrpc_server.core.upstream import ChatChunk

LIMIT = 1000


def shown(source: Any) -> bytes:
    return json.dumps(source, separators=(",", ":")).encode()


def chunk(content: str = "", reason: str | None = None, **more: Any) -> bytes:
    delta = {"content": content} if content else {}
    return shown({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more})


CHUNKS = [chunk("Hel"), chunk("lo"), chunk(reason="stop")]
WHOLE = shown({"choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}]})
UNFINISHED = shown({"choices": [{"index": 0, "message": {"content": "Hello"}}]})
DONE = b"data: [DONE]\n\n"
BOM = b"\xef\xbb\xbf"


def joined(before: bytes, after: bytes, chunks: Iterable[bytes] = CHUNKS) -> bytes:
    return b"".join(before + chunk + after for chunk in chunks)


INDENTED = b"\n".join(json.dumps(json.loads(one), indent=2).encode() for one in CHUNKS)
SHAPES: dict[str, bytes] = {
    "events": joined(b"data: ", b"\n\n") + DONE,
    "events behind a BOM": BOM + joined(b"data: ", b"\n\n") + DONE,
    "events behind blanks": b"\n \r\n" + joined(b"data: ", b"\n\n") + DONE,
    "events behind a comment": b": hi\n\n" + joined(b"data: ", b"\n\n") + DONE,
    "events with CRLF": joined(b"data:", b"\r\n\r\n") + DONE,
    "events with CR": joined(b"data: ", b"\r\r") + DONE,
    "events without blank lines": joined(b"data: ", b"\n") + DONE,
    "events without line end": joined(b"\ndata: ", b""),
    "typed events without blank lines": joined(b"event: message\ndata: ", b"\n") + DONE,
    "types behind the data": joined(b"data: ", b"\nevent: error\n\n"),
    "events with ids, without blank lines": joined(b"id: 1\ndata: ", b"\n") + DONE,
    "`data:` twice": joined(b"data: data: ", b"\n\n") + b"data: data: [DONE]\n\n",
    "`data:` twice, without spaces": joined(b"data:data:", b"\n\n") + b"data:data:[DONE]\n\n",
    "`data:` twice, without blank lines": joined(b"data: data: ", b"\n") + b"data: data: [DONE]\n",
    "indented events": joined(
        b"data: ", b"\n\n", [INDENTED.replace(b"\n}\n", b"\n}\n\n").replace(b"\n", b"\ndata: ")]
    ).replace(b"data: \ndata: ", b"\ndata: "),
    "events over lines": b"data: " + INDENTED.replace(b"\n}\n", b"\n}\n\ndata: ") + b"\n\n",
    "bare lines between events": joined(b"data: ", b"\n\n", CHUNKS[:1]) + joined(b"", b"\n\n", CHUNKS[1:]) + DONE,
    "bare lines behind a comment": b": hi\n\n" + joined(b"", b"\n") + b"[DONE]\n",
    "lines": joined(b"", b"\n"),
    "lines and usage": joined(b"", b"\n") + b'{"usage":{"total_tokens":3}}\n',
    "lines and [DONE]": joined(b"", b"\n") + b"[DONE]\n",
    "lines and an event [DONE]": joined(b"", b"\n\n") + DONE,
    "lines with CRLF": joined(b"", b"\r\n"),
    "lines with an empty error": joined(b"", b"\n", [one[:-1] + b',"error":{}}' for one in CHUNKS]),
    "objects without separator": joined(b"", b""),
    "RFC 7464": joined(b"\x1e", b"\n"),
    "indented objects": INDENTED,
    "array": b"[" + b",".join(CHUNKS) + b"]",
    "array over lines": b"[\n" + b"\n,\n".join(CHUNKS) + b"\n]",
    "JSON": WHOLE,
    "JSON behind a BOM": BOM + WHOLE,
    "JSON behind blanks": b"\n\n \r\n" + WHOLE,
    "JSON without finish_reason": UNFINISHED,
    "JSON and [DONE]": WHOLE + b"\n\n" + DONE,
    "JSON and [DONE] on its line": WHOLE + DONE,
    "JSON and other text": WHOLE + b"\nbye",
    "JSON over lines": json.dumps(json.loads(WHOLE), indent=2).encode(),
    "JSON in an array": b"[" + WHOLE + b"]",
    "JSON as an event": b"data: " + WHOLE + b"\n\n",
    "JSON behind a comment": b": hi\n\n" + json.dumps(json.loads(WHOLE), indent=2).encode(),
}


def text(chunks: Iterable[ChatChunk]) -> str:
    return "".join(choice.delta.content for chunk in chunks for choice in chunk.choices)


def fed(pieces: Iterable[bytes], limit: int = LIMIT, **options: Any) -> tuple[StreamReader, list[ChatChunk]]:
    reader = StreamReader(limit, **options)
    chunks = [chunk for piece in pieces for chunk in reader.feed(piece)]
    return reader, chunks + reader.finish()


@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES)
def test_stream(body: bytes) -> None:
    for cut in range(0, len(body) + 1, 3):
        reader, chunks = fed([body[:cut], body[cut:]], coalesce=bool(cut % 2))
        assert (reader.error, text(chunks)) == (None, "Hello"), cut
    reader, chunks = fed([body[at : at + 1] for at in range(len(body))], reuse=False)
    assert (reader.error, text(chunks)) == (None, "Hello")


@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES)
def test_unary(body: bytes) -> None:
    assert responses.parse_response(body).choices[0].message.content == "Hello"
    assert responses.parse_streamed_response(body, LIMIT).choices[0].message.content == "Hello"


@pytest.mark.parametrize("name", SHAPES)
def test_how_a_unary_response_is_read(name: str) -> None:
    is_stream = (
        name.startswith(("events", "typed", "types", "`data:`", "indented events", "JSON as", "bare"))
        or "comment" in name
    )
    assert responses.is_event_stream(SHAPES[name]) == is_stream


AS_THEY_COME: dict[str, tuple[bytes, bytes]] = {
    # the beginning, and the bytes around each chunk
    "events": (b"data: ", b"\n\n"),
    "events without blank lines": (b"data: ", b"\n"),
    "events with CRLF, without blank lines": (b"data: ", b"\r\n"),
    "typed events without blank lines": (b"event: a\ndata: ", b"\n"),
    "bare lines": (b": hi\n", b"\n"),
    "lines": (b"", b"\n"),
    "lines without their end": (b"\n", b""),
    "array": (b"[", b""),
}


@pytest.mark.parametrize(("before", "after"), AS_THEY_COME.values(), ids=AS_THEY_COME)
def test_each_chunk_is_delivered_as_it_comes(before: bytes, after: bytes) -> None:
    reader = StreamReader(LIMIT)
    for one, content in zip(CHUNKS, ("Hel", "lo", ""), strict=True):
        assert text(reader.feed(before + one + after)) == content
        before = before.replace(b"[", b",")
    assert reader.choices.is_whole


def test_a_whole_completion_is_final_at_once() -> None:
    """A response that is not streamed needs no finish_reason, and nothing can follow it."""
    body = UNFINISHED[:-1] + b',"object":"chat.completion"}'
    reader = StreamReader(LIMIT)
    assert text(reader.feed(body)) == "Hello"
    assert reader.choices.is_final
    assert (reader.finish(Truncated("broke")), reader.error) == ([], None)


NOT_AT_ONCE: dict[str, bytes] = {
    "an object without choices": b'data: {"a":1}\n',
    "no object yet": b'data: {"choices":[{"delta":{}\n',
    "a large chunk": b"data: " + chunk("x" * (1 << 16)) + b"\n",
}


@pytest.mark.parametrize("data", NOT_AT_ONCE.values(), ids=NOT_AT_ONCE)
def test_an_event_that_waits_for_its_blank_line(data: bytes) -> None:
    assert StreamReader(1 << 20).feed(data) == []


ERROR = {"message": "m", "code": 503}
BESIDE: dict[str, tuple[bytes, str]] = {
    # the chunk with the error, and the text that is delivered before the error
    "text": (chunk("lo", error=ERROR), "lo"),
    "a message": (shown({"choices": [{"message": {"content": "Hello"}}], "error": ERROR}), "lo"),
    "a role": (shown({"choices": [{"delta": {"role": "assistant", "content": ""}}], "error": ERROR}), ""),
    "a finish_reason": (chunk(reason="error", error=ERROR), ""),
    "no choices": (shown({"choices": [], "error": ERROR}), ""),
    "a choice of another kind": (shown({"choices": [5], "error": ERROR}), ""),
    "choices of another kind": (shown({"choices": 5, "error": ERROR}), ""),
}


@pytest.mark.parametrize("frame", ["data: %s\n\n", "%s\n"], ids=["events", "lines"])
@pytest.mark.parametrize(("last", "delivered"), BESIDE.values(), ids=BESIDE)
def test_content_beside_an_error_is_delivered_before_it(last: bytes, delivered: str, frame: str) -> None:
    body = b"".join(frame.encode() % one for one in (CHUNKS[0], last, CHUNKS[1]))
    reader, chunks = fed([body])
    assert isinstance(reader.error, ErrorResponse)
    assert (reader.error.message, text(chunks), reader.chunks) == ("m", "Hel" + delivered, 1 + bool(delivered))
    assert not any("error" in chunk.extra_json for chunk in chunks)
    first, _ = fed([frame.encode() % last])
    assert (first.chunks, first.error is not None) == (int(bool(delivered)), True)


INVALID = Reason.UPSTREAM_INVALID_RESPONSE
TRUNCATED = Reason.UPSTREAM_TRUNCATED
FAILURES: dict[str, tuple[bytes, Reason, str]] = {
    "HTML": (b"\n<!DOCTYPE html>", INVALID, "is an HTML page"),
    "an error in words": (b"upstream connect error", INVALID, "is neither JSON nor an event stream"),
    "a word": (b"Hello", INVALID, "is neither JSON nor an event stream"),
    "words behind a comment": (b": hi\nInternal Server Error\n", INVALID, "is neither JSON nor an event stream"),
    "heartbeats": (b": hi\nping\n\nping\n\n", TRUNCATED, "before [DONE]"),
    "comments": (b": hi\n\n", TRUNCATED, "before [DONE]"),
    "nothing": (b"", TRUNCATED, "before [DONE]"),
    "JSON cut off": (WHOLE[:40], INVALID, "is not JSON (40 bytes)"),
    "a line cut off": (CHUNKS[0] + b"\n" + CHUNKS[1][:20], TRUNCATED, "before [DONE]"),
    "lines without an end": (CHUNKS[0] + b"\n", TRUNCATED, "before [DONE]"),
    "no JSON in braces": (b"{sorry}", INVALID, "is not JSON (7 bytes)"),
    "no completion": (b'{"a":1}', INVALID, "has no array `choices`"),
    "an array of texts": (b'["a"]', INVALID, "is neither JSON nor an event stream"),
    "an error": (b'{"error":"m"}', Reason.UPSTREAM_ERROR_BODY, "m"),
    "an error in an array": (b'[{"error":"m"}]', Reason.UPSTREAM_ERROR_BODY, "m"),
    "a bare error between events": (b"data: " + CHUNKS[0] + b'\n\n{"error":"m"}\n', Reason.UPSTREAM_ERROR_BODY, "m"),
    "a bare error in an event": (b"data: " + CHUNKS[0] + b'\n{"error":"m"}\n', Reason.UPSTREAM_ERROR_BODY, "m"),
    "an error event without blank lines": (
        b"event: a\ndata: " + CHUNKS[0] + b'\nevent: error\ndata: {"message":"m"}\n',
        Reason.UPSTREAM_ERROR_BODY,
        "m",
    ),
    "a chunk as an error": (b"event: error\ndata: " + CHUNKS[0] + b"\n", Reason.UPSTREAM_ERROR_BODY, ""),
    "an `error` field without blank lines": (
        b"data: " + CHUNKS[0] + b'\nerror: {"message":"m"}\n',
        Reason.UPSTREAM_ERROR_BODY,
        "m",
    ),
}


@pytest.mark.parametrize(("body", "reason", "message"), FAILURES.values(), ids=FAILURES)
def test_failure(body: bytes, reason: Reason, message: str) -> None:
    for cut in range(len(body) + 1):
        reader, _ = fed([body[:cut], body[cut:]])
        assert reader.error is not None
        assert (reader.error.reason, reader.done) == (reason, False), cut
        assert message in reader.error.message


def test_many_words() -> None:
    reader, _ = fed([b"sorry\n" * 10_000])
    assert isinstance(reader.error, InvalidResponse)
    assert reader.error.detail is not None
    assert reader.error.detail.raw_body.startswith("sorry\nsorry")


def test_json_with_too_many_values_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatrpc_server.core.openai.large_responses._MANY_VALUES", 0)
    monkeypatch.setattr(jsontext.count_values, "__defaults__", (4,))
    assert responses.is_whole(b'{"choices":[],"a":[1,2]}')


def test_a_broken_connection_is_no_bad_json() -> None:
    reader = StreamReader(LIMIT)
    reader.feed(WHOLE[:40])
    reader.finish(Truncated("broke"))
    assert isinstance(reader.error, Truncated)


def test_limits() -> None:
    """A response that is not streamed has the limit of a response; later objects have that of an event."""
    large = chunk("x" * LIMIT)
    reader, _ = fed([large + b"\n"], max_response_bytes=2 * LIMIT)
    assert isinstance(reader.error, Truncated)
    for body, setting in ((large, "max_response_bytes"), (CHUNKS[0] + large, "max_event_bytes")):
        reader, _ = fed([body], **({} if setting == "max_response_bytes" else {"max_response_bytes": 2 * LIMIT}))
        assert isinstance(reader.error, InvalidResponse)
        assert (reader.error.kind, setting in reader.error.message) == ("oversize", True)


def test_raw_line_breaks_in_strings() -> None:
    body = b'data: {"choices":[{"delta":{"content":"a\nb"},"finish_reason":"stop"}]}\n\n'
    for cut in range(len(body) + 1):
        reader, chunks = fed([body[:cut], body[cut:]])
        assert (reader.error, text(chunks)) == (None, "a\nb")
