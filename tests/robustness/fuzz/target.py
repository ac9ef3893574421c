"""What must hold for whatever bytes an upstream sends, however they are cut; any input that breaks it is a bug.

- The pieces say what the whole says: for `core.sse.Decoder` the same events, for `core.responses.StreamReader` the
  same chunks, end and error.
- Nothing but `ChatError` is ever raised, and by the decoder only `InvalidResponse`.
- What the decoder keeps is bounded, and a bound changes nothing before the event at which it strikes.

The input is the stream itself, so that the corpus is readable; where it is cut follows from its checksum.
`run` drives `check` with atheris, `test_corpus.py` over the corpus without.
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
    """All that a reader makes of a stream, in a form that compares by bytes: NaN is not equal to itself."""

    chunks: list[bytes]
    done: bool
    error: tuple[type, str] | None
    usage: bytes | None
    finish_reasons: dict[int, str]


def check(data: bytes) -> None:
    """`check_cut` with one of the ways to cut, which is enough for a fuzzer that has so many inputs."""
    check_cut(data, random.Random(crc32(data)).choice(CUTS))


def check_cut(data: bytes, cut: Cut) -> None:
    """Raises AssertionError, or what should not have been raised, if `data` breaks a rule."""
    chance = random.Random(crc32(data))  # the same each time
    pieces = cut(data, chance)
    events, _ = decoded([data], UNBOUNDED)
    whole = read([data], UNBOUNDED)
    assert decoded(pieces, UNBOUNDED) == (events, False), "cut otherwise, other events"
    assert read(pieces, UNBOUNDED) == whole, "cut otherwise, another outcome"
    check_bound(pieces, chance.choice(BOUNDS), events, whole)
    for payload in [data, *(payload for _, payload in events)]:
        raises_chat_errors_only(responses.response, payload)
        responses.StreamReader(UNBOUNDED).feed_response(payload)
        error_responses.parse(500, {}, payload, now=0.0)


def check_bound(pieces: Pieces, bound: int, events: list[sse.Event], whole: Outcome) -> None:
    """With a bound there is less, or the same, but nothing else."""
    before, stopped = decoded(pieces, bound)
    assert before == events[: len(before)], "a bound changed an event"
    assert stopped or len(before) == len(events), "an event was lost without an error"
    assert all(len(payload) <= bound for _, payload in before), "an event is larger than allowed"
    chunks = read(pieces, bound).chunks
    if stopped and chunks != whole.chunks[: len(chunks)]:
        chunks.pop()  # halves of surrogate pairs that still wait at an error come in a chunk of their own
    assert chunks == whole.chunks[: len(chunks)], "a bound changed a chunk"


def decoded(pieces: Pieces, bound: int) -> tuple[list[sse.Event], bool]:
    """The events, and whether one was too large."""
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
    """The data and the unfinished line are counted; a type outlives its line, and is never longer than that."""
    kept = len(decoder._line) + sum(len(value) + 1 for value in decoder._data)
    assert kept <= data_allowed, f"{kept} bytes are kept, {data_allowed} allowed"
    assert len(decoder._type) <= type_allowed, f"a type of {len(decoder._type)} is kept, {type_allowed} allowed"


def read(pieces: Iterable[bytes], bound: int) -> Outcome:
    """The outcome of a stream that arrives in these pieces. Only `reader.error` tells of errors."""
    reader = responses.StreamReader(bound)
    chunks = [serialised(chunk) for piece in pieces for chunk in reader.feed(piece)]
    chunks += [serialised(chunk) for chunk in reader.finish()]
    error = (type(reader.error), reader.error.reason) if reader.error else None
    usage = serialised(reader.usage) if reader.usage else None
    return Outcome(chunks, reader.done, error, usage, reader.finish_reasons)


def serialised(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def raises_chat_errors_only(function: Callable[[bytes], object], data: bytes) -> None:
    with suppress(ChatError):
        function(data)


def one_by_one(data: bytes, _: random.Random) -> Pieces:
    return [data[i : i + 1] for i in range(len(data))]


def at_random(data: bytes, chance: random.Random) -> Pieces:
    """Some pieces are empty: an engine may hand over nothing."""
    cuts = sorted(chance.randint(0, len(data)) for _ in range(chance.randint(1, 8)))
    return [data[start:end] for start, end in pairwise([0, *cuts, len(data)])]


def at_line_ends(data: bytes, _: random.Random) -> Pieces:
    """Before and after each CR and LF: between the two of a CRLF too."""
    cuts = [at + after for at, byte in enumerate(data) if byte in b"\r\n" for after in (0, 1)]
    return [data[start:end] for start, end in pairwise([0, *cuts, len(data)])]


CUTS: list[Cut] = [one_by_one, at_random, at_line_ends]
