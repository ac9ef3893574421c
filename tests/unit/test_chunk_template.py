"""Chunks that differ from the previous one only in their text: recognised, and read as decoding would read them."""

import json
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatrpc_server.core.openai import chunk_template
from chatrpc_server.core.openai.responses import StreamReader
from chatrpc_server.core.openai.usage import StreamUsage
from chatrpc_server.core.upstream import ChatChunk

PLAIN = b'{"id":"i","choices":[{"index":0,"delta":{"content":%s}}]}'
SPACED = b'{"id": "i", "choices": [{"index": 0, "delta": {"content": %s}}]}'
EXTRAS = b'{"choices":[{"delta":{"content":%s},"native":1}],"provider":"p"}'
DONE = b"data: [DONE]\n\n"


def event(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"


def quoted(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode()


class Counting(chunk_template.ChunkTemplate):
    """Counts the events that matched."""

    count = 0
    scans = 0

    def match(self, data: bytes) -> ChatChunk | None:
        chunk = super().match(data)
        self.count += chunk is not None
        return chunk

    def scan(self, data: bytes, at: int, *, join: bool) -> tuple[list[ChatChunk], int, int]:
        self.scans += 1
        chunks, events, end = super().scan(data, at, join=join)
        self.count += events
        return chunks, events, end


class Never(chunk_template.ChunkTemplate):
    """Matches nothing, so that every event is decoded."""

    def match(self, data: bytes) -> ChatChunk | None:
        return None

    def scan(self, data: bytes, at: int, *, join: bool) -> tuple[list[ChatChunk], int, int]:
        return [], 0, at


def reader_with(kind: type[chunk_template.ChunkTemplate], limit: int = 10_000, **options: Any) -> StreamReader:
    reader = StreamReader(limit, **options)
    reader._template = kind(limit)
    return reader


def repeated(*payloads: bytes) -> int:
    """Return how many of these events, one per read, are not decoded; check that the result is the same."""
    reads = [*map(event, payloads), DONE]
    readers = [reader_with(Counting), reader_with(Counting, reuse=True)]
    for reader in readers:
        assert outcome(reader, reads) == outcome(reader_with(Never), reads)
    count, alone = [reader._template.count for reader in readers]  # type: ignore[attr-defined]
    assert alone >= count
    return count


def outcome(reader: StreamReader, reads: Iterable[bytes]) -> Any:
    """Return everything that a reader returns, after each read and at the end."""
    said = [[copied(chunk) for chunk in reader.feed(data)] for data in reads]
    said.append([copied(chunk) for chunk in reader.finish()])
    error = reader.error and (repr(reader.error), getattr(reader.error, "detail", None))
    return said, error, reader.done, reader.chunks, reader.usage, reader.choices.finish_reasons


def copied(chunk: ChatChunk) -> ChatChunk:
    copy = ChatChunk()
    copy.CopyFrom(chunk)
    return copy


SAME: dict[str, bytes] = {
    "plain": PLAIN,
    "with spaces": SPACED,
    "with extras": EXTRAS,
    "null beside it": b'{"choices":[{"delta":{"content":%s,"tool_calls":null},"finish_reason":null}],"usage":null}',
    "another choice": PLAIN.replace(b":0", b":1"),
    "no index": b'{"choices":[{"delta":{"content":%s}}]}',
    "content later": b'{"choices":[{"x":"content","delta":{"content":%s}}]}',
    "the last of two keys": b'{"choices":[{"delta":{"content":7,"content":%s}}]}',
    "an integer past 64 bits": b'{"created":123456789012345678901,"choices":[{"delta":{"content":%s}}]}',
    "an empty list of tool calls": b'{"choices":[{"delta":{"tool_calls":[],"content":%s}}]}',
}


@pytest.mark.parametrize("payload", SAME.values(), ids=SAME)
@pytest.mark.parametrize("first", ["a", "", "é😀", "\n", '"'], ids=ascii)
def test_only_the_text_changes(payload: bytes, first: str) -> None:
    texts = ["b", " longer than the first ", "", "é", "😀", "{}[]:,", "12345678901234567890"]
    assert repeated(payload % quoted(first), *(payload % quoted(text) for text in texts)) == len(texts)


ESCAPED: dict[str, bytes] = {
    "a quotation mark": rb'"\""',
    "a letter": rb'"\u0062"',
    "an end of line": rb'"\n"',
    "a pair": rb'"\ud83d\ude00"',
    "U+2028 as it is": '"\u2028"'.encode(),
    "U+FEFF as it is": '"\ufeff"'.encode(),
}


@pytest.mark.parametrize("text", ESCAPED.values(), ids=ESCAPED)
def test_escapes_in_a_text(text: bytes) -> None:
    assert repeated(PLAIN % b'"a"', *[PLAIN % text] * 5) == 5


def test_both_halves_of_a_pair_in_one_text_are_joined() -> None:
    halves = [rb'"\ud83d"', rb'"\ude00"']
    read = b"".join(event(PLAIN % text) for text in [b'"a"', *halves, b'"b"'])
    for options in ({}, {"coalesce": True}):
        assert outcome(reader_with(chunk_template.ChunkTemplate, **options), [read, DONE]) == outcome(
            reader_with(Never, **options), [read, DONE]
        )


def test_the_last_of_two_equal_keys_can_be_learnt_later() -> None:
    assert repeated(PLAIN % b'"a"', *[PLAIN % b'"b","content":"c"'] * 5) == 4


TEXTS: dict[str, bytes] = {
    "a backslash": rb'"\\"',
    "half a pair": rb'"\ud83d"',
    "no UTF-8": b'"\xff"',
    "a surrogate in UTF-8": b'"\xed\xa0\xbd"',
    "a control character": b'"\x01"',
    "another key": b'"b","role":"assistant"',
    "null": b"null",
    "a number": b"1",
    "an array": b'[{"type":"text","text":"b"}]',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_an_unusual_text_is_decoded(text: bytes) -> None:
    assert repeated(PLAIN % b'"a"', *[PLAIN % text] * 5) == 0


OTHERS: dict[str, bytes] = {
    "a role": b'{"choices":[{"delta":{"role":"assistant","content":%s}}]}',
    "reasoning beside it": b'{"choices":[{"delta":{"reasoning":"r","content":%s}}]}',
    "tool calls": b'{"choices":[{"delta":{"content":%s,"tool_calls":[{"id":"1","function":{"name":"f"}}]}}]}',
    "extras of the delta": b'{"choices":[{"delta":{"content":%s,"x":1}}]}',
    "logprobs": b'{"choices":[{"delta":{"content":%s},"logprobs":{}}]}',
    "a finish_reason": b'{"choices":[{"delta":{"content":%s},"finish_reason":"stop"}]}',
    "usage": b'{"choices":[{"delta":{"content":%s}}],"usage":{"total_tokens":1}}',
    "usage elsewhere": b'{"choices":[{"delta":{"content":%s},"usage":{"total_tokens":1}}]}',
    "two choices": b'{"choices":[{"delta":{"content":%s}},{"index":1,"delta":{"content":"b"}}]}',
    "a message": b'{"choices":[{"message":{"content":%s}}]}',
    "the first of two keys": b'{"choices":[{"delta":{"content":%s,"content":"a"}}]}',
    "no value that counts": b'{"choices":[{"delta":{"content":%s}}],"choices":[{"delta":{"content":"a"}}]}',
    "content of something else": b'{"x":{"content":%s},"choices":[{"delta":{"content":"a"}}]}',
    "content of something else, the same": b'{"x":{"content":%s},"choices":[{"delta":{"content":"another text"}}]}',
    "content in a key": rb'{"x\"content":%s,"choices":[{"delta":{"content":"a"}}]}',
    "a key that is escaped": rb'{"choices":[{"delta":{"c\u006fntent":%s}}]}',
    "white space before the text": b'{"choices":[{"delta":{"content":\t%s}}]}',
    "NaN beside it": b'{"choices":[{"delta":{"content":%s}}],"x":NaN}',
    "a byte order mark": b'\xef\xbb\xbf{"choices":[{"delta":{"content":%s}}]}',
}


@pytest.mark.parametrize("payload", OTHERS.values(), ids=OTHERS)
def test_more_than_text_is_decoded(payload: bytes) -> None:
    for text in (b'"a"', b'"another text"'):
        assert repeated(payload % text, *(payload % b'"%d"' % number for number in range(5))) == 0


@pytest.mark.parametrize(
    "payload",
    [
        PLAIN.replace(b'"i"', b'"j"') % b'"b"',
        PLAIN % b'"b"' + b" ",
        b" " + PLAIN % b'"b"',
        PLAIN[: PLAIN.index(b"%")] + b'"',
        PLAIN.replace(b"%s", b'"') % (),
    ],
    ids=["another id", "more after", "more before", "only the beginning", "both ends in one"],
)
def test_a_difference_around_the_text_is_decoded(payload: bytes) -> None:
    assert repeated(PLAIN % b'"a"', payload) == 0


def test_an_event_of_another_type_is_decoded() -> None:
    reads = [event(PLAIN % b'"a"'), b"event: error\n" + event(PLAIN % b'"b"'), event(PLAIN % b'"c"')]
    assert outcome(reader_with(Counting), reads) == outcome(reader_with(Never), reads)


def test_learning_stops_if_nothing_repeats() -> None:
    """As with obfuscation, because learning costs as much as decoding."""
    different = [
        PLAIN.replace(b'"i"', b'"%d"' % number) % b'"a"' for number in range(chunk_template._MAX_UNUSED_LESSONS)
    ]
    assert repeated(*different, *[PLAIN % b'"a"'] * 5) == 0
    assert repeated(*different[1:], *[PLAIN % b'"a"'] * 5) == 4
    used = [PLAIN % b'"a"'] * 2
    assert repeated(different[0], *used, *different[1:], *[SPACED % b'"a"'] * 2) == 2, "a match allows further learning"


def test_after_half_a_pair_the_next_text_is_decoded() -> None:
    half, rest = PLAIN % rb'"\ud83d"', PLAIN % rb'"\ude00"'
    assert repeated(PLAIN % b'"a"', PLAIN % b'"b"', half, PLAIN % b'"c"', PLAIN % b'"d"') == 2
    assert repeated(PLAIN % b'"a"', half, rest, PLAIN % b'"d"') == 1


@pytest.mark.parametrize(
    ("payload", "messages"),
    [(PLAIN, 1), (EXTRAS, 4), (PLAIN[:-1] + b',"obfuscation":"x"}', 4)],
    ids=["plain", "extras", "obfuscation"],
)
def test_chunks_with_extras_are_not_merged(payload: bytes, messages: int) -> None:
    """Rule 10 of chat_service.proto: no extras."""
    reader = reader_with(Counting, coalesce=True)
    reader.feed(event(payload % b'"a"'))
    chunks = reader.feed(b"".join(event(payload % b'"%d"' % number) for number in range(4)))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "0123"
    assert reader._template.count == 4  # type: ignore[attr-defined]
    if b"obfuscation" in payload:  # its texts are concatenated too
        assert "".join(chunk.obfuscation for chunk in chunks) == "xxxx"
    else:
        assert len(chunks) == messages


def test_a_message_is_reused_until_the_next_read() -> None:
    reader = StreamReader(1000, reuse=True)
    (learnt,) = reader.feed(event(PLAIN % b'"a"'))
    (first,) = reader.feed(event(PLAIN % b'"b"'))
    kept = copied(first)
    (second,) = reader.feed(event(PLAIN % b'"c"'))
    assert first is second
    assert [chunk.choices[0].delta.content for chunk in (learnt, kept, second)] == ["a", "b", "c"]
    several = reader.feed(event(PLAIN % b'"d"') + event(PLAIN % b'"e"'))
    assert [chunk.choices[0].delta.content for chunk in (second, *several)] == ["c", "d", "e"]
    reader.feed(event(SPACED.replace(b'"i"', b'"j"') % b'"f"'))
    (other,) = reader.feed(event(SPACED.replace(b'"i"', b'"j"') % b'"g"'))
    assert (other.id, other.choices[0].delta.content, second.id) == ("j", "g", "i")


def test_a_message_is_reused_only_if_it_is_alone_in_its_read() -> None:
    reader = StreamReader(1000, reuse=True, coalesce=True)
    reader.feed(event(PLAIN % b'"a"'))
    counted = b'{"id":"u","choices":[],"usage":{"total_tokens":1}}'  # not learnt, and not merged
    read = reader.feed(b"".join(map(event, [PLAIN % b'"b"', counted, PLAIN % b'"c"'])))
    assert [[choice.delta.content for choice in chunk.choices] for chunk in read] == [["b"], [], ["c"]]


@pytest.mark.parametrize("reuse", [False, True])
def test_an_event_that_is_too_large_is_an_error(reuse: bool) -> None:
    limit = len(PLAIN % b'"abc"')
    reads = [event(PLAIN % text) for text in (b'"a"', b'"abc"', b'"abcd"')]
    said = outcome(reader_with(Counting, limit, reuse=reuse), reads)
    assert said == outcome(reader_with(Never, limit), reads)
    assert [len(chunks) for chunks in said[0]] == [1, 1, 0, 0]


@pytest.mark.parametrize("end", [DONE, event(b'{"error":{"message":"m"}}')], ids=["done", "error"])
def test_nothing_follows_the_end(end: bytes) -> None:
    reads = [event(PLAIN % b'"a"'), event(PLAIN % b'"b"'), end, event(PLAIN % b'"c"')]
    assert outcome(reader_with(Counting, reuse=True), reads) == outcome(reader_with(Never), reads)


def test_an_event_of_two_data_lines_is_not_learnt() -> None:
    """Without its `data:` the second line is no data, and the rest is no JSON."""
    start, comma, rest = (PLAIN % b'"a"').partition(b",")
    taught = b"data: " + start + comma + b"\ndata: " + rest + b"\n\n"
    broken = b"data: " + start + comma + b"\n" + rest + b"\n\n"
    assert outcome(reader_with(Counting), [taught, broken]) == outcome(reader_with(Never), [taught, broken])


def test_a_run_without_text_is_scanned_once() -> None:
    reader = reader_with(Counting)
    reader.feed(event(PLAIN % b'"a"'))
    run = [PLAIN % b'"b"'] * 50 + [PLAIN % b'"\xff"']
    reader.feed(b"".join(map(event, run)))
    assert reader.chunks == len(run) + 1
    assert reader._template.scans <= 3  # type: ignore[attr-defined]


def test_a_reused_message_does_not_grow() -> None:
    reader = StreamReader(1 << 20, reuse=True)
    reader.feed(event(PLAIN % b'"a"'))
    times = chunk_template._MAX_REUSED_CHARACTERS
    messages = [reader.feed(event(PLAIN % b'"b"'))[0] for _ in range(3 * times)]
    assert len(set(map(id, messages))) == 3


def test_a_reused_message_keeps_few_large_texts() -> None:
    reader = StreamReader(1 << 20, reuse=True)
    reader.feed(event(PLAIN % b'"a"'))
    large = event(PLAIN % (b'"%s"' % (b"x" * chunk_template._MAX_REUSED_CHARACTERS)))
    messages = [reader.feed(large)[0] for _ in range(3)]
    assert len(set(map(id, messages))) == 3


def test_a_long_text_is_not_kept() -> None:
    long = event(PLAIN % (b'"%s"' % (b"x" * 10_000)))
    reader = StreamReader(1 << 20)
    reader.feed(event(PLAIN % b'"a"'))
    tracemalloc.start()
    try:
        for _ in range(100):
            reader.feed(long)
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()


def test_no_depth_raises_at_the_nesting_limit() -> None:
    """Deeper extras are dropped. One of these depths can be decoded, but not one call deeper in the stack."""
    for depth in range(700, 1000):
        nested = b'{"x":%s%s,"x":null,"created":12345678901234567890,' % (b"[" * depth, b"]" * depth)
        repeated(nested + PLAIN[1:] % b'"a"', nested + PLAIN[1:] % b'"b"')


# Any streams, in any pieces.

NASTY = [
    *SAME.values(),
    *OTHERS.values(),
    b'{"error":{"message":%s}}',
    b'{"error":null,"choices":[{"delta":{"content":%s}}]}',
    b'{"choices":[{"delta":{"content":%s}}],"usage":{"total_tokens":7}}',
    b'{"choices":[],"usage":{"completion_tokens":7},"x":%s}',
    b'{"choices":[{"delta":{},"finish_reason":"stop","x":%s}]}',
    b'{"choices":[{"delta":{"content":%s},"finish_reason":""}],"obfuscation":"o"}',
    b'{"choices":[{"index":1,"delta":{"content":%s}}],"x":{"content":"a"}}',
    b'{"choices":[{"index":5000000000,"delta":{"content":%s}}]}',
    b'{"choices":{"content":%s}}',
    b'[{"content":%s}]',
    b"%s",
    b"[DONE]%s",
    b"<html>%s",
]
WORDS = ["", "a", "b", "ab", "another text", "ax", "x", '"', "\\", "\n", "é", "😀", "\u2028", "\xa0", "\x7f"]
LITERALS = [*map(quoted, WORDS), *TEXTS.values(), rb'"\ude00"', rb'"\ud83da"', b'",1234567890123456789012,"']
FRAMES = [b"data: %s\n\n"] * 12 + [
    b"data:%s\n\n",
    b"data:  %s\n\n",
    b"data: %s\r\n\r\n",
    b"data: %s\r\r",
    b"data: %s\n",
    b"data: %s\n: c\n\n",
    b": c\n\ndata: %s\n\n",
    b"\ndata: %s\n\n",
    b"id: 7\ndata: %s\n\n",
    b"event: ping\ndata: %s\n\n",
    b"event: error\ndata: %s\n\n",
    b"event: x\n\ndata: %s\n\n",
    b"error: %s\n\n",
]


class Stream(NamedTuple):
    events: list[bytes]
    cuts: list[int] | None

    def reads(self) -> list[bytes]:
        """Return the stream, cut at these places or between the events."""
        if self.cuts is None:
            return self.events
        data = b"".join(self.events)
        bounds = [0, *sorted(min(cut, len(data)) for cut in self.cuts), len(data)]
        return [data[start:end] for start, end in pairwise(bounds)]


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    payloads = draw(st.lists(st.sampled_from(NASTY), min_size=1, max_size=3))  # so that they repeat
    pieces = st.tuples(st.sampled_from(FRAMES), st.sampled_from(payloads), st.sampled_from(LITERALS))
    events = [frame % (payload % text) for frame, payload, text in draw(st.lists(pieces, max_size=12))]
    return Stream(events, draw(st.none() | st.just([]) | st.lists(st.integers(0, 1200), max_size=8)))


@pytest.mark.timeout(600)
@settings(max_examples=1500, deadline=None)
@given(streams(), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([70, 100, 10_000]))
def test_the_result_equals_decoding(stream: Stream, coalesce: bool, reuse: bool, drop: bool, limit: int) -> None:
    options: dict[str, Any] = {"coalesce": coalesce, "reuse": reuse, "usage": StreamUsage(is_declined=drop)}
    matched = outcome(reader_with(chunk_template.ChunkTemplate, limit, **options), stream.reads())
    decoded = outcome(reader_with(Never, limit, **options), stream.reads())
    assert matched == decoded
