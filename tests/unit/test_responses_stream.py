"""Streams: normalisation, end, and failure. The numbers of the rules are those of chat_service.proto."""

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatrpc.v1.chat_message_pb2 import ContentPart
from chatrpc.v1.chat_response_pb2 import ChunkChoice, Delta, Usage
from chatrpc_server.core.errors import ErrorResponse, InvalidResponse, Reason, Truncated
from chatrpc_server.core.openai.responses import StreamReader
from chatrpc_server.core.openai.usage import StreamUsage
from chatrpc_server.core.upstream import ChatChunk

LIMIT = 1000
HIGH, LOW = "\ud83d", "\ude00"  # the halves of 😀


def event(source: Any) -> bytes:
    return b"data: " + json.dumps(source).encode() + b"\n\n"


def choice(content: str = "", index: int = 0, **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": {"content": content} if content else {}, **more}


def chunk(*choices: Any, **more: Any) -> bytes:
    return event({"choices": choices, **more})


A, B = chunk(choice("a")), chunk(choice("b"))
END = chunk(choice(finish_reason="stop"))
DONE = b"data: [DONE]\n\n"


def fed(pieces: Iterable[bytes], **options: Any) -> tuple[StreamReader, list[ChatChunk]]:
    """Feed these reads and the end of the bytes; return the reader and all chunks."""
    reader = StreamReader(LIMIT, **options)
    chunks = [chunk for piece in pieces for chunk in reader.feed(piece)]
    return reader, chunks + reader.finish()


def texts(chunks: Iterable[ChatChunk]) -> list[str]:
    return [choice.delta.content for chunk in chunks for choice in chunk.choices]


def a_chunk(*choices: ChunkChoice, **more: Any) -> ChatChunk:
    return ChatChunk(choices=choices, **more)


def a_delta(**fields: Any) -> ChatChunk:
    return a_chunk(ChunkChoice(delta=Delta(**fields)))


def shown(source: Any) -> str:
    return json.dumps(source, separators=(",", ":"))


USAGE = {"total_tokens": 3}
SURFACES: dict[str, tuple[bytes, list[ChatChunk]]] = {
    "1. an event": (A, [a_delta(content="a")]),
    "1. no comments": (b": keep-alive\n\n" + A + b":\n", [a_delta(content="a")]),
    "1. no empty events": (b"data:\n\ndata\n\nevent: ping\n\n" + A, [a_delta(content="a")]),
    "1. events without blank lines": (
        A[:-1] + B[:-1] + DONE[:-1] + b"data: x\n\n",
        [a_delta(content=text) for text in "ab"],
    ),
    "1. choices that are empty": (
        chunk(prompt_filter_results=[]),
        [a_chunk(extra_json='{"prompt_filter_results":[]}')],
    ),
    "1. a choice without delta": (
        chunk({"index": 0, "content_filter_results": {}}),
        [a_chunk(ChunkChoice(extra_json='{"content_filter_results":{}}'))],
    ),
    "1. choices of another kind": (event({"choices": 5}), [a_chunk(extra_json='{"choices":5}')]),
    "1. a choice of another kind": (chunk(5), [a_chunk(extra_json='{"choices":[5]}')]),
    "3. empty names": (
        chunk({"delta": {"role": "", "content": "a"}, "finish_reason": ""}),
        [a_delta(content="a")],
    ),
    "4. content array": (
        chunk({"delta": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}),
        [a_delta(content="ab", content_parts=[ContentPart(type="text", text=text) for text in "ab"])],
    ),
    "5. usage as it is": (event({"choices": [], "usage": USAGE}), [a_chunk(usage=Usage(total_tokens=3))]),
    "5. usage of Moonshot": (
        chunk(choice("a", usage=USAGE), choice("b", 1, usage={"total_tokens": 4})),
        [
            a_chunk(
                ChunkChoice(delta=Delta(content="a"), extra_json=shown({"usage": USAGE})),
                ChunkChoice(index=1, delta=Delta(content="b"), extra_json='{"usage":{"total_tokens":4}}'),
                usage=Usage(total_tokens=3),
            )
        ],
    ),
    "5. usage of Groq": (
        chunk(choice("a"), usage=None, x_groq={"usage": USAGE}),
        [
            a_chunk(
                ChunkChoice(delta=Delta(content="a")),
                usage=Usage(total_tokens=3),
                extra_json=shown({"x_groq": {"usage": USAGE}}),
            )
        ],
    ),
    "5. usage of Groq, no choices": (
        event({"x_groq": {"usage": USAGE}}),
        [a_chunk(usage=Usage(total_tokens=3), extra_json=shown({"x_groq": {"usage": USAGE}}))],
    ),
    "5. the usage at the top level counts": (
        chunk(usage=USAGE, x_groq={"usage": {"total_tokens": 4}}),
        [a_chunk(usage=Usage(total_tokens=3), extra_json='{"x_groq":{"usage":{"total_tokens":4}}}')],
    ),
    "5. usage of another kind is not lifted": (
        chunk(x_groq={"usage": 5}),
        [a_chunk(extra_json='{"x_groq":{"usage":5}}')],
    ),
    "6. halves of a pair": (
        chunk(choice("a" + HIGH)) + chunk(choice(LOW + "b")),
        [a_delta(content="a"), a_delta(content="😀b")],
    ),
    "6. halves of a pair, over a usual event": (
        chunk(choice(HIGH)) + chunk(choice("", 1)) + chunk(choice(LOW)),
        [a_delta(content=""), a_chunk(ChunkChoice(index=1, delta=Delta())), a_delta(content="😀")],
    ),
    "6. half a pair, not the second half": (
        chunk(choice(HIGH)) + chunk(choice("b")),
        [a_delta(content=""), a_delta(content="\ufffdb")],
    ),
    "6. half a pair at the end": (
        chunk(choice("a" + HIGH)) + END,
        [a_delta(content="a"), a_chunk(ChunkChoice(delta=Delta(content="\ufffd"), finish_reason="stop"))],
    ),
    "6. half a pair before [DONE]": (
        chunk(choice("a" + HIGH, 1), id="i"),
        [
            a_chunk(ChunkChoice(index=1, delta=Delta(content="a")), id="i"),
            a_chunk(ChunkChoice(index=1, delta=Delta(content="\ufffd")), id="i"),
        ],
    ),
    "6. half a pair as an extra": (chunk(x=HIGH), [a_chunk(extra_json=r'{"x":"\ud83d"}')]),
    "8. nothing is invented": (event({"choices": []}), [ChatChunk()]),
    "8. the two reasoning fields stay separate": (
        chunk({"delta": {"reasoning": "r"}}) + chunk({"delta": {"reasoning_content": "c"}}),
        [a_delta(reasoning="r"), a_delta(reasoning_content="c")],
    ),
    "a different id in each chunk": (
        event({"id": "1", "choices": []}) + event({"id": "2", "choices": []}),
        [ChatChunk(id="1"), ChatChunk(id="2")],
    ),
    "white space around": (b"data:  \t" + A[6:], [a_delta(content="a")]),
    "NaN": (b'data: {"choices":[],"x":NaN}\n\n', [a_chunk(extra_json='{"x":null}')]),
}


@pytest.mark.parametrize(("data", "expected"), SURFACES.values(), ids=SURFACES)
def test_chunks(data: bytes, expected: list[ChatChunk]) -> None:
    reader, chunks = fed([data, DONE])
    assert (chunks, reader.error) == (expected, None)


def test_the_newest_usage_counts() -> None:
    reader, _ = fed([event({"choices": [], "usage": {"total_tokens": n}}) for n in (1, 2)] + [A, DONE])
    assert reader.usage == Usage(total_tokens=2)


@pytest.mark.parametrize(
    ("source", "dropped"),
    [
        pytest.param({"choices": [], "usage": USAGE}, True, id="usage"),
        pytest.param({"usage": USAGE}, True, id="usage, no key choices"),
        pytest.param({"choices": [choice()], "usage": USAGE}, True, id="usage and an empty delta, of LiteLLM"),
        pytest.param({"choices": [choice("a")], "usage": USAGE}, False, id="usage and text"),
        pytest.param({"choices": [choice(finish_reason="stop")], "usage": USAGE}, False, id="usage and the end"),
        pytest.param({"choices": [choice(logprobs={})], "usage": USAGE}, False, id="usage and logprobs"),
        pytest.param({"choices": [choice(x=1)], "usage": USAGE}, False, id="usage and extras of a choice"),
        pytest.param({"choices": []}, False, id="no usage"),
    ],
)
def test_9_usage_that_the_caller_declined(source: Any, dropped: bool) -> None:
    for drop in (False, True):
        reader, chunks = fed([event(source), DONE], usage=StreamUsage(is_declined=drop))
        assert len(chunks) == (0 if dropped and drop else 1)
        assert (reader.usage == Usage(total_tokens=3)) == ("usage" in source)


TRUNCATED = "the upstream closed the stream before [DONE] and before every choice had a finish_reason"
TWO = chunk(choice("a"), choice("b", 1))
END1 = chunk(choice("", 1, finish_reason="length"))
ENDS: dict[str, tuple[bytes, bool]] = {
    # the reads, and is the stream complete?
    "7. [DONE]": (A + DONE, True),
    "7. finish_reason": (A + END, True),
    "7. both": (A + END + DONE, True),
    "7. neither": (A, False),
    "7. no bytes": (b"", False),
    "7. only comments": (b": x\n\n", False),
    "7. only [DONE]": (DONE, True),
    "7. [DONE] with more on its line": (A + b"data: [DONE] bye\n\n", True),
    "7. [DONE] without blank line": (A + b"data: [DONE]", True),
    "7. [DONE] and then anything": (A + DONE + b"data: <html>\n\n" + event({"error": "e"}), True),
    "7. [DONE] and then too much": (A + DONE + b"x" * 2 * LIMIT, True),
    "7. one of two has finished": (TWO + END, False),
    "7. both have finished": (TWO + END + END1, True),
    "7. the other choice finished without text": (A + END1, False),
    "7. text after the finish": (A + END + B, False),
    "7. text after the finish, and [DONE]": (A + END + B + DONE, True),
    "7. text after the finish, finished again": (A + END + B + END, True),
    "7. usage after the finish": (A + END + chunk(usage=USAGE), True),
    "7. an empty finish_reason": (A + chunk({"delta": {}, "finish_reason": ""}), False),
    "7. finished without blank line": (A + END[:-2], True),
    "7. cut in an event": (A + END[:-5], False),
    "7. cut after the finish": (A + END + chunk(usage=USAGE)[:-9], True),
    "7. cut in [DONE], after the finish": (A + END + b"data: [DO", True),
    "7. cut in [DONE]": (A + b"data: [DO", False),
    "7. half a pair at the finish": (A + chunk(choice(HIGH, finish_reason="stop")), True),
}


@pytest.mark.parametrize(("data", "whole"), ENDS.values(), ids=ENDS)
def test_end(data: bytes, whole: bool) -> None:
    reader, _ = fed([data])
    if whole:
        assert reader.error is None
    else:
        assert isinstance(reader.error, Truncated)
        assert (reader.error.message, reader.error.reason) == (TRUNCATED, Reason.UPSTREAM_TRUNCATED)


def test_the_last_event_may_be_an_error() -> None:
    reader, chunks = fed([A + event({"error": "m"})[:-2]])
    assert texts(chunks) == ["a"]
    assert isinstance(reader.error, ErrorResponse)


def test_the_last_event_needs_no_blank_line() -> None:
    reader = StreamReader(LIMIT)
    assert texts(reader.feed(A + END[:-2])) == ["a"]
    assert reader.finish() == [a_chunk(ChunkChoice(delta=Delta(), finish_reason="stop"))]
    assert (reader.error, reader.done) == (None, False)


def test_finish_reasons_by_choice() -> None:
    reader, _ = fed([TWO, END1, DONE])
    assert (reader.choices.finish_reasons, reader.done) == ({1: "length"}, True)


@pytest.mark.parametrize("end", [b"", event({"error": "m"}), b"data: garbage\n\n"])
def test_6_half_a_pair_is_delivered_at_every_end(end: bytes) -> None:
    reader, chunks = fed([chunk(choice("a" + HIGH)) + end])
    assert texts(chunks) == ["a", "\ufffd"]
    assert reader.error is not None


def test_6_half_a_pair_in_an_unframed_response() -> None:
    reader, chunks = fed([b'{"choices":[{"message":{"content":"a\\ud83d"}}]}'])
    assert (texts(chunks), reader.done, reader.error) == (["a", "\ufffd"], True, None)


def test_an_unframed_error() -> None:
    reader, chunks = fed([b'{"error":"m"}'])
    assert chunks == []
    assert isinstance(reader.error, ErrorResponse)


def test_everything_after_done_is_ignored() -> None:
    reader = StreamReader(LIMIT)
    assert texts(reader.feed(A + DONE + B)) == ["a"]
    assert (reader.feed(B), reader.finish(), reader.error) == ([], [], None)


INVALID = Reason.UPSTREAM_INVALID_RESPONSE
FAILURES: dict[str, tuple[bytes, Reason, str]] = {
    "error object": (event({"error": {"message": "m", "code": 429}}), Reason.UPSTREAM_RATE_LIMITED, "m"),
    "error beside choices": (chunk(error={"message": "m", "code": 502}), Reason.UPSTREAM_UNAVAILABLE, "m"),
    "error text": (event({"error": "m"}), Reason.UPSTREAM_ERROR_BODY, "m"),
    "error list": (event([{"error": {"message": "m", "code": 400}}]), Reason.UPSTREAM_INVALID_REQUEST, "m"),
    "flat error": (event({"object": "error", "message": "m", "code": 500}), Reason.UPSTREAM_INTERNAL, "m"),
    "error event": (b"event: error\n" + event({"message": "m"}), Reason.UPSTREAM_ERROR_BODY, "m"),
    "error event, detail": (b"event: error\n" + event({"detail": "m"}), Reason.UPSTREAM_ERROR_BODY, "m"),
    "error event, JSON text": (b"event: error\n" + event("m"), Reason.UPSTREAM_ERROR_BODY, "m"),
    "error event, plain text": (b"event: error\ndata: m\xff\n\n", Reason.UPSTREAM_ERROR_BODY, "m\ufffd"),
    "error event, null": (b"event: error\n" + event(None), Reason.UPSTREAM_ERROR_BODY, "an error without a message"),
    "error field of llama.cpp": (b'error: {"message":"m","code":503}\n\n', Reason.UPSTREAM_UNAVAILABLE, "m"),
    "garbage": (b"data: <html>\n\n", INVALID, "an event of the upstream's stream is not JSON (6 bytes)"),
    "an object cut short": (END[:-5] + b"\n\n", INVALID, "an event of the upstream's stream is not JSON (62 bytes)"),
    "an array of objects": (b"data: [{}]\n\n", INVALID, "an event of the upstream's stream is not a JSON object"),
    "two broken lines": (
        b"data: {1\ndata: {22\n\n",
        INVALID,
        "an event of the upstream's stream is not JSON (2 bytes)",
    ),
    "too much": (
        b"data: " + b"x" * LIMIT * 2,
        INVALID,
        f"an event of the upstream's stream exceeds {LIMIT} bytes; raise upstream.max_event_bytes",
    ),
}


@pytest.mark.parametrize(("data", "reason", "message"), FAILURES.values(), ids=FAILURES)
def test_failure(data: bytes, reason: Reason, message: str) -> None:
    reader, chunks = fed([A + data, B, DONE])
    assert texts(chunks) == ["a"]
    assert reader.error is not None
    assert (reader.error.reason, reader.done) == (reason, False)
    assert reader.error.message.endswith(message)
    if isinstance(reader.error, ErrorResponse):
        assert (reader.error.in_success, reader.error.detail.http_status) == (True, 200)


EVERYTHING = [data for data, _ in SURFACES.values()] + [data for data, _ in ENDS.values()]
EVERYTHING += [A + data + B for data, _, _ in FAILURES.values()]


@settings(max_examples=500)
@given(st.sampled_from(EVERYTHING), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(0, 300)))
def test_any_split_of_the_bytes_gives_the_same_result(data: bytes, newline: bytes, cuts: list[int]) -> None:
    data = data.replace(b"\n", newline)
    assert outcome(*fed(pieces(data, cuts))) == outcome(*fed([data]))


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return (data[start:end] for start, end in pairwise(bounds))


def outcome(reader: StreamReader, chunks: list[ChatChunk]) -> Any:
    return chunks, repr(reader.error), reader.done, reader.usage, reader.choices.finish_reasons


@pytest.mark.parametrize("lead", [b"", b"\n \n", b"\xef\xbb\xbf"], ids=["at once", "after blank lines", "with a BOM"])
def test_json_without_framing_is_a_whole_response(lead: bytes) -> None:
    body = lead + b'{"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}]}'
    for cut in range(len(body) + 1):
        reader = StreamReader(len(body))
        chunks = [*reader.feed(body[:cut]), *reader.feed(body[cut:]), *reader.finish()]
        assert (reader.error, reader.done) == (None, True)
        assert [chunk.choices[0].delta.content for chunk in chunks] == ["a"]


def test_json_without_framing_is_bounded() -> None:
    reader = StreamReader(10)
    assert reader.feed(b'{"choices": []}') == reader.feed(b"}") == reader.finish() == []
    assert isinstance(reader.error, InvalidResponse)


def test_a_half_pair_at_the_end_has_the_head_of_its_chunk() -> None:
    head = {"id": "i", "object": "o", "created": 7, "model": "m"}
    chunk = {**head, "choices": [{"index": 0, "delta": {"content": "a\ud83d"}}]}
    reader = StreamReader(10_000)
    last = [*reader.feed(b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n"), *reader.finish()][-1]
    assert {key: getattr(last, key) for key in head} == head
    assert last.choices[0].delta.content == "\ufffd"
