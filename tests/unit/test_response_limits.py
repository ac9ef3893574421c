"""Limits for the numbers of things that an upstream can invent, and linear time for what it can send."""

import json
import time
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from chatrpc_server.core.errors import InvalidResponse
from chatrpc_server.core.openai import limits, requests, responses
from chatrpc_server.core.openai.surrogates import SurrogateJoiner
from chatrpc_server.core.upstream import ChatRequest

HIGH = "\ud83d"


def event(*choices: Any, **fields: Any) -> bytes:
    return b"data: " + json.dumps({"choices": choices, **fields}).encode() + b"\n\n"


def delta(index: Any = 0, **fields: Any) -> dict[str, Any]:
    return {"index": index, "delta": fields}


def call(index: int | None = None, identity: str | None = None, name: str = "f") -> dict[str, Any]:
    return {"index": index, "id": identity, "function": {"name": name, "arguments": "{}"}}


def failure_of(events: Iterable[bytes]) -> str:
    reader = responses.StreamReader(1 << 20, requested_choices=2 * CHOICES)  # so that no number of them is final
    for data in events:
        reader.feed(data)
        if reader.error:
            assert isinstance(reader.error, InvalidResponse)
            assert reader.error.kind == "oversize"
            return reader.error.message
    reader.finish()
    return ""


CHOICES = limits.MAX_CHOICES
CALLS = limits.MAX_TOOL_CALLS
STREAMS: dict[str, tuple[Callable[[int], Iterable[bytes]], int, str]] = {
    # case: the events for a number, the most that is allowed, and the name of the things
    "choices": (lambda n: (event(delta(i, content="a")) for i in range(n)), CHOICES, "choices"),
    "finished choices": (
        lambda n: (event({**delta(i), "finish_reason": "stop"}) for i in range(n)),
        CHOICES,
        "choices",
    ),
    "choices in one event": (lambda n: [event(*(delta(i) for i in range(n)))], CHOICES, "choices"),
    "choices with calls and a huge index": (
        lambda n: (event(delta(10**20 + i, tool_calls=[call()])) for i in range(n)),
        CHOICES,
        "choices",
    ),
    "calls": (lambda n: (event(delta(tool_calls=[call(i, f"c{i}")])) for i in range(n)), CALLS, "tool calls"),
    "calls without ids": (lambda n: (event(delta(tool_calls=[call(i)])) for i in range(n)), CALLS, "tool calls"),
    "calls without indexes": (
        lambda n: (event(delta(tool_calls=[call(None, f"c{i}")])) for i in range(n)),
        CALLS,
        "tool calls",
    ),
    "calls in one event": (lambda n: [event(delta(tool_calls=[call(i) for i in range(n)]))], CALLS, "tool calls"),
    "calls of several choices": (
        lambda n: (event(delta(i % 8, tool_calls=[call(i // 8)])) for i in range(n)),
        CALLS,
        "tool calls",
    ),
    "lines of one event": (lambda n: [b"data: null\n" * n + b"\n"], limits.MAX_EVENT_LINES, "lines in one event"),
}


@pytest.mark.parametrize(("events", "limit", "what"), STREAMS.values(), ids=STREAMS)
def test_stream(
    events: Callable[[int], Iterable[bytes]], limit: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what.startswith("lines"):
        limit = 10
        monkeypatch.setattr(limits, "MAX_EVENT_LINES", limit)
    assert failure_of(events(limit)) == ""
    assert failure_of(events(limit + 1)) == f"the upstream's response has {limit + 1} {what}; the limit is {limit}"


def test_ids_of_one_call_are_limited() -> None:
    """Some servers change the id of a call."""
    fewer = (event(delta(tool_calls=[call(0, f"c{number}", name="")])) for number in range(CALLS))
    assert failure_of(fewer) == ""
    endless = (event(delta(tool_calls=[call(0, f"c{number}", name="")])) for number in range(10 * CALLS))
    assert failure_of(endless) == f"the upstream's response has {CALLS + 1} tool calls; the limit is {CALLS}"


def test_unary_choices_and_calls_are_limited() -> None:
    def body(choices: int, calls: int) -> bytes:
        message = {"content": "a", "tool_calls": [call(i) for i in range(calls)]}
        return json.dumps({"choices": [{"index": i, "message": message} for i in range(choices)]}).encode()

    assert len(responses.parse_response(body(CHOICES, CALLS // CHOICES)).choices) == CHOICES
    with pytest.raises(InvalidResponse, match=f"{CHOICES + 1} choices; the limit is {CHOICES}"):
        responses.parse_response(body(CHOICES + 1, 0))
    with pytest.raises(InvalidResponse, match=f"{CALLS + 2} tool calls; the limit is {CALLS}"):
        responses.parse_response(body(2, CALLS // 2 + 1))


def test_long_values_are_not_remembered() -> None:
    """Ids, indexes and finish reasons of any size; the caller receives them all the same."""
    reader = responses.StreamReader(1 << 20)
    size = 100_000
    tracemalloc.start()
    try:
        for number in range(100):
            long = f"{number:{size}}"
            data = event(
                delta(long, content=HIGH, tool_calls=[call(None, long)]), {"index": number, "finish_reason": long}
            )
            (chunk,) = reader.feed(data)
            assert chunk.choices[0].delta.tool_calls[0].id == long
            assert chunk.choices[1].finish_reason == long
            del data, chunk, long
        assert tracemalloc.get_traced_memory()[0] < 5 * size
    finally:
        tracemalloc.stop()


def test_waiting_surrogates_are_limited() -> None:
    def join(index: int, *calls: int, joiner: SurrogateJoiner) -> None:
        joined = [{"index": number, "custom": {"input": HIGH}} for number in calls]
        joiner.join({"choices": [{"index": index, "delta": {"content": HIGH, "tool_calls": joined}}]})

    joiner = SurrogateJoiner()
    for index in range(CHOICES):
        join(index, joiner=joiner)
    with pytest.raises(InvalidResponse, match=f"{CHOICES + 1} choices"):
        join(CHOICES, joiner=joiner)
    with pytest.raises(InvalidResponse, match="tool calls"):
        join(0, *range(3 * CALLS), joiner=SurrogateJoiner())


def test_choices_of_waiting_surrogates_count_too() -> None:
    reader = responses.StreamReader(1 << 20)
    for index in range(CHOICES):
        reader.feed(event(delta(str(index), content=f"a{HIGH}")))
    assert not reader.error
    assert [len(chunk.choices) for chunk in reader.finish()] == [CHOICES]


def seconds(work: Callable[[Any], object], argument: Any) -> float:
    """Return the CPU time, the best of several."""
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        work(argument)
        best = min(best, time.process_time() - started)
    return best


def streamed(data: bytes) -> None:
    responses.parse_streamed_response(data, 62 << 20)


def read(data: bytes) -> None:
    reader = responses.StreamReader(62 << 20)
    for at in range(0, len(data), 1 << 16):
        reader.feed(data[at : at + (1 << 16)])
    reader.finish()
    assert not isinstance(reader.error, InvalidResponse)


def a_request(**fields: Any) -> ChatRequest:
    return ChatRequest(model="m", messages=[{"role": "user", "content": "a"}], **fields)


def many_messages(count: int) -> ChatRequest:
    data = ChatRequest(messages=[{"role": "user", "content": "a", "extra_json": '{"a":1}'}]).SerializeToString()
    return ChatRequest.FromString(data * count)


def pieces(count: int, make: Callable[[int], dict[str, Any]]) -> bytes:
    return b"".join(event(delta(**make(number))) for number in range(count)) + b"data: [DONE]\n\n"


LINEAR: dict[str, tuple[Callable[[Any], object], Callable[[int], Any], int]] = {
    # case: the work, its input of a size, and the size
    "text": (streamed, lambda n: pieces(n, lambda _: {"content": "abcd"}), 4000),
    "reasoning_details": (streamed, lambda n: pieces(n, lambda i: {"reasoning_details": [{"text": f"{i}"}]}), 1000),
    "arguments": (streamed, lambda n: pieces(n, lambda _: {"tool_calls": [call(0, "a")]}), 1000),
    "calls": (streamed, lambda n: pieces(n, lambda i: {"tool_calls": [call(i % 1000, None)]}), 1000),
    "audio": (streamed, lambda n: pieces(n, lambda _: {"audio": {"data": "ZWY=", "transcript": "a"}}), 1000),
    "parts": (streamed, lambda n: pieces(n, lambda i: {"content": [{"text": "a"}] if i % 9 == 0 else "b"}), 1000),
    "annotations": (streamed, lambda n: pieces(n, lambda _: {"annotations": [{"type": "x"}]}), 1000),
    "surrogates": (
        read,
        lambda n: pieces(n, lambda i: {"tool_calls": [{"index": i % 1000, "custom": {"input": HIGH}}]}),
        1000,
    ),
    "an event of many lines": (read, lambda n: b"data: {}\n" * n + b"\n", 2500),
    "an event of many reads": (read, lambda n: event(delta(content="x" * n)), 2 << 20),
    "an event of many lines and reads": (
        read,
        lambda n: b'data: {"choices":[]\n' + b"data:\n" * n + b"data: }\n\n",
        60_000,
    ),
    "keys of a response": (
        responses.parse_response,
        lambda n: json.dumps({"choices": [], **{f"k{i}": i for i in range(n)}}).encode(),
        30_000,
    ),
    "keys of a request": (
        requests.unary_body,
        lambda n: a_request(extra_json=json.dumps({f"k{i}": i for i in range(n)})),
        10_000,
    ),
    "messages": (requests.unary_body, many_messages, 2500),
}


@pytest.mark.parametrize(("work", "of_size", "size"), LINEAR.values(), ids=LINEAR)
def test_time_is_linear(work: Callable[[Any], object], of_size: Callable[[int], Any], size: int) -> None:
    small, large = of_size(size), of_size(2 * size)
    assert any(seconds(work, large) < 3 * seconds(work, small) for _ in range(5))  # one try can meet a busy machine


@pytest.mark.parametrize("kind", ["content", "reasoning", "reasoning_details"])
def test_memory_of_an_assembled_stream(kind: str) -> None:
    """50,000 pieces of 4 bytes: the whole service must stay within 20 MiB."""
    value: Any = [{"t": 1}] if kind == "reasoning_details" else "abcd"
    data = pieces(50_000 if kind == "content" else 3000, lambda _: {kind: value})
    tracemalloc.start()
    try:
        streamed(data)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
