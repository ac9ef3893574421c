"""The WHATWG rules of event streams as a table; the same events for every cut; bounded memory, linear time."""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatrpc_server.core.errors import InvalidResponse
from chatrpc_server.core.openai import sse

Events = list[sse.Event]
BOM = b"\xef\xbb\xbf"
LIMIT = 64


def decoded(pieces: Iterable[bytes], *, flush: bool = True) -> Events:
    decoder = sse.Decoder(LIMIT)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + list(decoder.flush()) if flush else events


def messages(*payloads: bytes) -> Events:
    return [("message", payload) for payload in payloads]


STREAMS: dict[str, tuple[bytes, Events]] = {
    "LF": (b"data: a\n\ndata: b\n\n", messages(b"a", b"b")),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", messages(b"a", b"b")),
    "CR": (b"data: a\r\rdata: b\r\r", messages(b"a", b"b")),
    "mixed": (b"data: a\r\n\rdata: b\n\r\ndata: c\r\n\n", messages(b"a", b"b", b"c")),
    "CR, CRLF": (b"data: a\r\r\ndata: b\n\n", messages(b"a", b"b")),
    "lines of one event, mixed": (b"data: a\rdata: b\r\ndata: c\n\n", messages(b"a\nb\nc")),
    "many blank lines": (b"\n\n\r\ndata: a\n\n\n\r\r", messages(b"a")),
    "byte order mark": (BOM + b"data: a\n\n", messages(b"a")),
    "byte order mark, alone on its line": (BOM + b"\ndata: a\n\n", messages(b"a")),
    "byte order mark before a comment": (BOM + b": c\ndata: a\n\n", messages(b"a")),
    "a second byte order mark": (BOM + BOM + b"data: a\n\ndata: b\n\n", messages(b"b")),
    "byte order mark later": (b"\n" + BOM + b"data: a\n\ndata: b\n\n", messages(b"b")),
    "byte order mark in the data": (b"data: " + BOM + b"\n\n", messages(BOM)),
    "comments": (b": c\n:\ndata: a\n:data: b\ndata: c\n\n: d\n\n", messages(b"a\nc")),
    "no space": (b"data:a\n\n", messages(b"a")),
    "one space only": (b"data:  a \n\n", messages(b" a ")),
    "a tab is no space": (b"data:\ta\n\n", messages(b"\ta")),
    "a colon inside": (b"data: a: b:\n\n", messages(b"a: b:")),
    "data, empty": (b"data:\n\n", messages(b"")),
    "data, without colon": (b"data\n\n", messages(b"")),
    "data, twice empty": (b"data\ndata:\n\n", messages(b"\n")),
    "a field without colon": (b"event\nfoo\ndata: a\n\n", messages(b"a")),
    "names are exact": (b"Data: a\n data: b\ndata : c\ndatum: d\n\ndata: e\n\n", messages(b"e")),
    "id and retry": (b"id: 1\nretry: 5\ndata: a\nid: 2\n\n", messages(b"a")),
    "type": (b"event: ping\ndata: a\n\ndata: b\n\n", [("ping", b"a"), ("message", b"b")]),
    "type after the data": (b"data: a\nevent: ping\n\n", [("ping", b"a")]),
    "the last type": (b"event: a\nevent: b\ndata: c\n\n", [("b", b"c")]),
    "type, empty": (b"event: a\nevent\ndata: c\n\n", messages(b"c")),
    "type, invalid UTF-8": (b"event: \xff\ndata: a\n\n", [("\ufffd", b"a")]),
    "type without data does not last": (b"event: ping\n\ndata: a\n\n", messages(b"a")),
    "llama.cpp": (b'error: {"code":500}\n\ndata: a\n\n', [("error", b'{"code":500}'), ("message", b"a")]),
    "other line ends": (
        "data: a\u2028b\u2029c\x85d\x0be\x0c\n\n".encode(),
        messages("a\u2028b\u2029c\x85d\x0be\x0c".encode()),
    ),
    "NUL": (b"data: \x00\n\n", messages(b"\x00")),
    "nothing": (b"", []),
}
UNFINISHED: dict[str, tuple[bytes, Events, Events]] = {
    "a second object, cut": (b'data: {"a":1}\ndata: {"b":2}', [], messages(b'{"a":1}', b'{"b":2}')),
    # the events by the rules, and those that the flush adds
    "no blank line": (b"data: a\n\ndata: b\n", messages(b"a"), messages(b"b")),
    "no line end": (b"data: a", [], messages(b"a")),
    "CR ends the blank line": (b"data: a\n\r", messages(b"a"), []),
    "half a field": (b"data: a\nda", [], messages(b"a")),
    "half a comment": (b"data: a\n: c", [], messages(b"a")),
    "a type only": (b"event: a", [], []),
    "a type": (b"event: a\ndata: b", [], [("a", b"b")]),
    "only a byte order mark": (BOM, [], []),
    "a byte order mark, no line end": (BOM + b"data: a", [], messages(b"a")),
}


@pytest.mark.parametrize(("data", "expected"), STREAMS.values(), ids=STREAMS)
def test_stream(data: bytes, expected: Events) -> None:
    assert decoded([data], flush=False) == expected
    assert decoded([data]) == expected
    assert decoded(data[i : i + 1] for i in range(len(data))) == expected
    for cut in range(len(data) + 1):
        assert decoded([data[:cut], b"", data[cut:]]) == expected, cut


@pytest.mark.parametrize(("data", "before", "flushed"), UNFINISHED.values(), ids=UNFINISHED)
def test_unfinished(data: bytes, before: Events, flushed: Events) -> None:
    assert decoded([data], flush=False) == before
    for cut in range(len(data) + 1):
        assert decoded([data[:cut], data[cut:]]) == before + flushed, cut


def test_flush_leaves_nothing() -> None:
    decoder = sse.Decoder(LIMIT)
    assert list(decoder.feed(b"event: e\ndata: a\ndata: b")) == []
    assert list(decoder.flush()) == [("e", b"a\nb")]
    assert list(decoder.flush()) == []
    assert list(decoder.feed(b"data: c\n\n")) == messages(b"c")


def by_the_rules(data: bytes) -> Events:
    """Return the events by a naive implementation of the rules."""
    events, kind, payload = [], b"", None
    for line in [*re.split(b"\r\n|\r|\n", data.removeprefix(BOM)), b""]:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if payload is not None:
                events.append((kind.decode() or "message", payload))
            kind, payload = b"", None
        elif name in (b"data", b"error"):
            payload = value if payload is None else payload + b"\n" + value
            kind = name if name == b"error" else kind
        elif name == b"event":
            kind = value
    return events


FRAGMENTS = [b"\n", b"\r", b"\r\n", b"data", b"data:", b"data: ", b"event: e", b"error:", b":", b" ", b"x", BOM]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map(b"".join), st.lists(st.integers(0, 100)))
def test_any_bytes_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    decoder = sse.Decoder(1000)
    events = [event for start, end in pairwise(bounds) for event in decoder.feed(data[start:end])]
    assert events + list(decoder.flush()) == by_the_rules(data)


def fed_as_a_reader_does(pieces: Iterable[bytes], limit: int) -> tuple[Events, bool]:
    """Return the events, and whether they are all. Simple events between two others are matched, not fed."""
    decoder, events = sse.Decoder(limit), Events()
    try:
        for piece in pieces:
            data, at = decoder.only_lf(piece), 0
            while at < len(data):
                end = data.find(b"\n\n", at) + 2
                block = data[at:] if end == 1 else data[at:end]
                at += len(block)
                if decoder.is_between_events and re.fullmatch(b"data: [a-z]+\n\n", block):
                    events.append(("message", block[6:-2]))
                else:
                    for event in decoder.feed_lines(block):
                        events.append(event)
        events.extend(decoder.flush())
    except InvalidResponse:
        return events, False
    return events, True


EVENTS = [
    b"data: x\n\n",
    b"data: xyz\n\n",
    b"data:\n\n",
    b"event: e\ndata: x\n\n",
    b"data: x\ndata: y\n\n",
    b": c\n\n",
    b"data: x\rdata: y\n\n",
    b"data: 123456789abcd\n\n",
]


@settings(max_examples=500)
@given(st.lists(st.lists(st.sampled_from(FRAGMENTS + EVENTS * 3), max_size=4).map(b"".join), max_size=12))
def test_reads_that_are_one_event(pieces: list[bytes]) -> None:
    assert fed_as_a_reader_does(pieces, 1000) == (by_the_rules(b"".join(pieces)), True)


@given(st.lists(st.lists(st.sampled_from(FRAGMENTS + EVENTS), max_size=4).map(b"".join), max_size=12))
def test_reads_with_a_limit(pieces: list[bytes]) -> None:
    """Only data above the limit stops the stream."""
    data = b"".join(pieces)
    events, whole = fed_as_a_reader_does(pieces, 12)
    assert events == by_the_rules(data)[: None if whole else len(events)]
    assert all(len(payload) <= 12 for _, payload in events)
    blocks = re.split(b"\n\n|\r\r|\r\n\r\n", data)
    assert whole or max(map(len, blocks)) > 12


TOO_LARGE: dict[str, list[bytes]] = {
    "one line": [b"data: " + b"x" * (LIMIT + 1) + b"\n\n"],
    "an endless line": [b"data: "] + [b"x"] * LIMIT,
    "an endless comment": [b": "] + [b"x"] * LIMIT,
    "an endless name": [b"x"] * (LIMIT + 1),
    "an endless type": [b"event: "] + [b"x"] * LIMIT,
    "endless byte order marks": [BOM] * LIMIT,
    "an event of many lines": [b"data: xxx\n"] * (LIMIT // 4 + 2),
    "an event of many empty lines": [b"data\n"] * (LIMIT + 2),
    "an event and the beginning of a line": [b"data: " + b"x" * (LIMIT // 2) + b"\n", b":" * (LIMIT // 2)],
    "an error": [b"error: " + b"x" * (LIMIT + 1) + b"\n\n"],
}


@pytest.mark.parametrize("pieces", TOO_LARGE.values(), ids=TOO_LARGE)
def test_too_large(pieces: list[bytes]) -> None:
    with pytest.raises(InvalidResponse, match=f"exceeds {LIMIT} bytes"):
        decoded(pieces, flush=False)


LARGE: dict[str, tuple[list[bytes], Events]] = {
    "an event of exactly that size": ([b"data: " + b"x" * LIMIT + b"\n\n"], messages(b"x" * LIMIT)),
    "lines of exactly that size": ([b"data: x\n"] * (LIMIT // 2) + [b"\n"], messages((b"x\n" * (LIMIT // 2))[:-1])),
    "many events": ([b"data: x\n\n"] * LIMIT, messages(b"x") * LIMIT),
    "many comments": ([b": x\n"] * LIMIT + [b"data: a\n\n"], messages(b"a")),
    "many types": ([b"event: x\n"] * LIMIT + [b"data: a\n\n"], [("x", b"a")]),
    "a long comment in one piece": ([b":" * 2 * LIMIT + b"\ndata: a\n\n"], messages(b"a")),
}


@pytest.mark.parametrize(("pieces", "expected"), LARGE.values(), ids=LARGE)
def test_large_enough(pieces: list[bytes], expected: Events) -> None:
    assert decoded(pieces) == expected


def test_events_before_one_that_is_too_large_arrive() -> None:
    events: Events = []
    with pytest.raises(InvalidResponse):  # noqa: PT012
        for event in sse.Decoder(LIMIT).feed(b"data: a\n\ndata: " + b"x" * LIMIT * 2 + b"\n\n"):
            events.append(event)
    assert events == messages(b"a")


@pytest.mark.parametrize("step", [1, 7, 4096])
@pytest.mark.parametrize(
    "line", [b"x" * 100_000, b"\r\n" + (b":" + b"c" * 99 + b"\r") * 1000], ids=["one line", "many lines"]
)
def test_time_is_linear(line: bytes, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the bytes that enter and leave the buffer of the unfinished line."""
    data = b"data: " + line + b"\n\n"
    moved = 0

    class Counting(bytearray):
        def __iadd__(self, more: Any) -> "Counting":
            nonlocal moved
            moved += len(more)
            return super().__iadd__(more)

        def __bytes__(self) -> bytes:
            nonlocal moved
            moved += len(self)
            return bytes(memoryview(self))

        def _scanned(self, *_: Any) -> Any:
            raise AssertionError("the buffer is looked through again")

        find = index = split = partition = splitlines = replace = __getitem__ = __contains__ = _scanned  # type: ignore[assignment]

    monkeypatch.setattr(sse, "bytearray", Counting, raising=False)
    decoder = sse.Decoder(1 << 20)
    events = [event for start in range(0, len(data), step) for event in decoder.feed(data[start : start + step])]
    assert len(events) == 1
    assert 0 < moved <= 2 * len(data)
