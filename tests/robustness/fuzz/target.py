"""Rules for any bytes of an upstream in any pieces; an input that breaks one is a bug.

- The pieces give the same result as the whole: for `core.openai.sse.Decoder` the same events, for
  `core.openai.responses.StreamReader` the same chunks, end and error.
- Only `ChatError` is raised, and by the decoder only `InvalidResponse`.
- The memory of the decoder is bounded, and a bound changes nothing before the event that exceeds it.

The input is the stream itself, so that the corpus is readable; its checksum determines the cuts.
`run` drives `check` with atheris, `test_corpus.py` runs it over the corpus.
"""

import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple
from zlib import crc32

from google.protobuf.message import Message

from chatrpc_server.core.errors import ChatError, InvalidResponse
from chatrpc_server.core.openai import error_responses, responses, sse

Pieces = list[bytes]
Cut = Callable[[bytes, random.Random], Pieces]

UNBOUNDED = 1 << 40
BOUNDS = (0, 1, 16, 64, 256, 1024)


class Outcome(NamedTuple):
    """The complete result of a reader, compared by bytes because NaN is not equal to itself."""

    chunks: list[bytes]
    done: bool
    error: tuple[type, str] | None
    usage: bytes | None
    finish_reasons: dict[int, str]


def check(data: bytes) -> None:
    """Run `check_cut` with one way to cut, which is enough for a fuzzer with many inputs."""
    check_cut(data, random.Random(crc32(data)).choice(CUTS))


def check_cut(data: bytes, cut: Cut) -> None:
    """Raise AssertionError, or the unexpected exception, if `data` breaks a rule."""
    chance = random.Random(crc32(data))  # the same each time
    pieces = cut(data, chance)
    events, _ = decoded([data], UNBOUNDED)
    whole = read([data], UNBOUNDED)
    assert decoded(pieces, UNBOUNDED) == (events, False), "another cut gives other events"
    assert read(pieces, UNBOUNDED) == whole, "another cut gives another outcome"
    check_bound(pieces, chance.choice(BOUNDS), events, whole)
    for payload in [data, *(payload for _, payload in events)]:
        raises_chat_errors_only(responses.parse_response, payload)
        raises_chat_errors_only(responses.is_whole, payload)
        read([payload], UNBOUNDED)
        error_responses.parse(500, {}, payload, now=0.0)


def check_bound(pieces: Pieces, bound: int, events: list[sse.Event], whole: Outcome) -> None:
    """Check that a bound shortens the result at most, and changes nothing else."""
    before, stopped = decoded(pieces, bound)
    assert before == events[: len(before)], "a bound changed an event"
    assert stopped or len(before) == len(events), "an event was lost without an error"
    assert all(len(payload) <= bound for _, payload in before), "an event is larger than allowed"
    chunks = read(pieces, bound).chunks
    if stopped and chunks != whole.chunks[: len(chunks)]:
        chunks.pop()  # pending halves of surrogate pairs at an error are a separate chunk
    assert chunks == whole.chunks[: len(chunks)], "a bound changed a chunk"


def decoded(pieces: Pieces, bound: int) -> tuple[list[sse.Event], bool]:
    """Return the events, and whether one was too large."""
    decoder = sse.Decoder(bound)
    events: list[sse.Event] = []
    largest = 0
    try:
        for piece in pieces:
            largest = max(largest, len(piece))
            for event in decoder.feed(piece):
                events.append(event)
            check_kept(decoder, bound, bound + largest)
        for event in decoder.flush():
            events.append(event)
    except InvalidResponse:
        check_kept(decoder, bound + largest, bound + largest)
        return events, True
    check_kept(decoder, 0, bound + largest)
    return events, False


def check_kept(decoder: Any, data_allowed: int, type_allowed: int) -> None:
    """Check the size of data and unfinished line, and of the type, which outlives its line."""
    kept = len(decoder._line) + sum(len(value) + 1 for value in decoder._data)
    assert kept <= data_allowed, f"{kept} bytes are kept, {data_allowed} allowed"
    assert len(decoder._type) <= type_allowed, f"a type of {len(decoder._type)} is kept, {type_allowed} allowed"


def read(pieces: Iterable[bytes], bound: int) -> Outcome:
    """Return the outcome of a stream in these pieces. Errors are only in `reader.error`."""
    reader = responses.StreamReader(bound)
    chunks = [serialised(chunk) for piece in pieces for chunk in reader.feed(piece)]
    chunks += [serialised(chunk) for chunk in reader.finish()]
    error = (type(reader.error), reader.error.reason) if reader.error else None
    usage = serialised(reader.usage) if reader.usage else None
    return Outcome(chunks, reader.done, error, usage, reader.choices.finish_reasons)


def serialised(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def raises_chat_errors_only(function: Callable[[bytes], object], data: bytes) -> None:
    with suppress(ChatError):
        function(data)


def one_by_one(data: bytes, _: random.Random) -> Pieces:
    return [data[i : i + 1] for i in range(len(data))]


def at_random(data: bytes, chance: random.Random) -> Pieces:
    """Cut at random; some pieces are empty, because an HTTP client may deliver empty reads."""
    cuts = sorted(chance.randint(0, len(data)) for _ in range(chance.randint(1, 8)))
    return [data[start:end] for start, end in pairwise([0, *cuts, len(data)])]


def at_line_ends(data: bytes, _: random.Random) -> Pieces:
    """Cut before and after each CR and LF, also inside a CRLF."""
    cuts = [at + after for at, byte in enumerate(data) if byte in b"\r\n" for after in (0, 1)]
    return [data[start:end] for start, end in pairwise([0, *cuts, len(data)])]


CUTS: list[Cut] = [one_by_one, at_random, at_line_ends]
