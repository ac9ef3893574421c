"""`ToolCallDelta.index` if the upstream sends none: a wrong one silently merges parallel calls."""

import json
from typing import Any

import pytest

from chatrpc_server.core.openai.responses import StreamReader


def call(id: Any = None, name: Any = None, arguments: Any = None, **more: Any) -> dict[str, Any]:  # noqa: A002
    source = {"id": id, "function": {"name": name, "arguments": arguments}, **more}
    return {key: value for key, value in source.items() if value is not None}


def deltas(*events: list[Any], choice: Any = 0) -> list[list[Any]]:
    """Return the tool calls of each event's delta."""
    reader = StreamReader(10_000)
    sources = [{"choices": [{"index": choice, "delta": {"tool_calls": calls}}]} for calls in events]
    chunks = reader.feed(b"".join(b"data: " + json.dumps(source).encode() + b"\n\n" for source in sources))
    assert reader.error is None
    return [list(chunk.choices[0].delta.tool_calls) for chunk in chunks]


STREAMS: dict[str, list[tuple[list[dict[str, Any]], list[int]]]] = {
    # name: (calls of a delta, their indexes), in order
    "the upstream's index": [
        ([call("a", "f", index=1)], [1]),
        ([call("b", "f", index=0)], [0]),
        ([call(arguments="{", index=1)], [1]),
    ],
    "whole calls in one delta": [([call("a", "f"), call("b", "f"), call("c", "f")], [0, 1, 2])],
    "whole calls, a delta each": [([call("a", "f", "{}")], [0]), ([call("b", "f", "{}")], [1])],
    "one after the other": [
        ([call("a", "f")], [0]),
        ([call(arguments="{")], [0]),
        ([call(arguments="}")], [0]),
        ([call("b", "f")], [1]),
        ([call(arguments="{}")], [1]),
    ],
    "the id again in each delta": [
        ([call("a", "f")], [0]),
        ([call("b", "f")], [1]),
        ([call("a", arguments="{")], [0]),
        ([call("b", arguments="{")], [1]),
        ([call("a", "f", "}")], [0]),
    ],
    "empty ids": [
        ([call("a", "f", "")], [0]),
        ([call("", "", "{}")], [0]),
        ([call("b", "f")], [1]),
        ([call("", "")], [1]),
    ],
    "no ids, but names": [([call(name="f")], [0]), ([call(arguments="{}")], [0]), ([call(name="g")], [1])],
    "no ids, by position": [
        ([call(name="f"), call(name="g")], [0, 1]),
        ([call(arguments="{"), call(arguments="{")], [0, 1]),
    ],
    "no field at all": [([call(arguments="{")], [0]), ([call(arguments="}")], [0])],
    "an index in the first delta only": [([call("a", "f", index=2)], [2]), ([call(arguments="{}")], [2])],
    "an index that another call had before": [
        ([call("a", "f", index=3)], [3]),
        ([call("b", "f")], [4]),
        ([call("a")], [3]),
    ],
    "the index null": [([{**call("a", "f"), "index": None}, {**call("b", "f"), "index": None}], [0, 1])],
    "an index from the second delta on": [([call("a", "f")], [0]), ([call("a", "f", "{}", index=0)], [0])],
    "index 0 for all, whole calls": [([call("a", "f", "{}", index=0), call("b", "f", "{}", index=0)], [0, 1])],
    "index 0 for all, one after the other": [
        ([call("a", "f", index=0)], [0]),
        ([call(arguments="{}", index=0)], [0]),
        ([call("b", "f", index=0)], [1]),
        ([call("", "", "{}", index=0)], [1]),
        ([call("a", arguments=" ", index=0)], [0]),
    ],
    "index 0 for some": [
        ([call("a", "f", index=0)], [0]),
        ([call("b", "f", index=0)], [1]),
        ([call("c", "f", index=1)], [2]),
        ([call(arguments="{}", index=1)], [2]),
        ([{"id": "d", "custom": {"name": "c"}, "index": 0}], [3]),
    ],
    "an index that continues under other ids": [
        ([call("a", "f", index=0)], [0]),
        ([call("b", arguments="{", index=0)], [0]),
        ([call("c", "", "}", index=0)], [0]),
        ([call("d", "g", index=1)], [1]),
    ],
    "one id for all": [([call("a", "f", index=0), call("a", "f", index=1)], [0, 1])],
    "the id after the name": [([call(name="f", index=0)], [0]), ([call("a", index=0)], [0])],
    "digits": [
        ([call("a", "f", index="1"), call("b", "f", index="0")], [1, 0]),
        ([call("c", "f", index="9" * 10)], [2]),
    ],
    "whole floats": [([call("a", "f", index=1.0)], [1]), ([call("b", "f", index=0.0)], [0])],
    "not numbers": [([call("a", "f", index="x"), call("b", "f", index=True), call("c", "f", index=0.5)], [0, 1, 2])],
    "custom tools": [([{"id": "a", "custom": {"name": "c"}}], [0]), ([{"id": "b", "custom": {"name": "c"}}], [1])],
    "functions of another type": [([{"id": "a", "function": "f"}, {"function": 5}], [0, 1])],
    "ids of another type": [([call({"x": 1}, "f"), call([], "g"), call(5, "h")], [0, 1, 2])],
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_index(stream: list[tuple[list[dict[str, Any]], list[int]]]) -> None:
    read = deltas(*(calls for calls, _ in stream))
    assert [[call.index for call in calls] for calls in read] == [indexes for _, indexes in stream]


def test_arguments_and_names_of_continuations() -> None:
    first, second, third = deltas([call("a", "f", "")], [call("", "", {"x": 1.0})], [call("", None, None)])
    assert (first[0].id, first[0].function.name, first[0].function.arguments) == ("a", "f", "")
    assert (second[0].HasField("id"), second[0].function.HasField("name")) == (False, False)
    assert second[0].function.arguments == '{"x":1.0}'
    assert not third[0].function.HasField("arguments")


def test_each_choice_counts_separately() -> None:
    reader = StreamReader(10_000)
    source = {"choices": [{"index": i, "delta": {"tool_calls": [call(f"{i}{n}", "f") for n in "ab"]}} for i in (0, 1)]}
    (chunk,) = reader.feed(b"data: " + json.dumps(source).encode() + b"\n\n")
    assert [[call.index for call in choice.delta.tool_calls] for choice in chunk.choices] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("choice", [None, "x", [1], {}, True, 2.0], ids=repr)
def test_a_choice_without_a_valid_index(choice: Any) -> None:
    read = deltas([call("a", "f"), call("b", "f")], [call("b", arguments="{}")], choice=choice)
    assert [[call.index for call in calls] for calls in read] == [[0, 1], [1]]


@pytest.mark.parametrize("calls", [5, "x", {}, [5], [None, call("a", "f")]], ids=repr)
def test_calls_of_another_type_are_extras(calls: Any) -> None:
    reader = StreamReader(10_000)
    source = {"choices": [{"delta": {"tool_calls": calls}}]}
    (chunk,) = reader.feed(b"data: " + json.dumps(source).encode() + b"\n\n")
    assert not chunk.choices[0].delta.tool_calls
    assert "tool_calls" in json.loads(chunk.choices[0].delta.extra_json)


def test_halves_of_pairs_join_within_their_call_without_an_index() -> None:
    high, low = "\ud83d", "\ude00"
    first, second = deltas([call("a", "f", high), call("b", "g", high)], [call("b", arguments=low), call("a")])
    assert [delta.function.arguments for delta in (*first, second[0])] == ["", "", "😀"]
