"""Streams that repeat the message so far: only the new part counts, for streams and for unary calls."""

import json
from collections import defaultdict
from typing import Any

import pytest

from chatrpc_server.core.openai import limits
from chatrpc_server.core.openai.responses import StreamReader, parse_response, parse_streamed_response
from support.walker import to_json

Event = dict[str, Any]
MANY = {f"k{n}": n for n in range(99)}
LONG = "The quick brown fox jumps over the lazy dog, and then over one more. " * 3


def delta(source: Event | None, finish_reason: str | None = None, **choice: Any) -> Event:
    return {"choices": [{"index": 0, "delta": source, "finish_reason": finish_reason, **choice}]}


def message(source: Event, finish_reason: str | None = None) -> Event:
    return {"choices": [{"index": 0, "message": source, "finish_reason": finish_reason}]}


def both(one: Event, whole: Event, finish_reason: str | None = None) -> Event:
    return delta(one, finish_reason, message=whole)


def call(name: Any = None, arguments: Any = None, **more: Any) -> Event:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"tool_calls": [{"index": 0, **more, "function": function}]}


def whole_call(name: str, arguments: Any, **more: Any) -> Event:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**more, "function": {"name": name, "arguments": arguments}}],
    }


def sse(events: list[Event]) -> list[bytes]:
    payloads = [*(json.dumps({"id": "c", **event}) for event in events), "[DONE]"]
    return [f"data: {payload}\n\n".encode() for payload in payloads]


def streamed(events: list[Event], *, at_once: bool, **options: Any) -> dict[str, Any]:
    """Return what the deltas add up to, as a caller would add them."""
    reader = StreamReader(1 << 20, reuse=True, **options)
    reads = [b"".join(sse(events))] if at_once else sse(events)
    texts: dict[str, str] = defaultdict(str)
    calls: dict[int, dict[str, str]] = defaultdict(lambda: defaultdict(str))
    for data in reads:
        for chunk in reader.feed(data):
            for choice in chunk.choices:
                for name in ("role", "content", "reasoning_content", "reasoning", "refusal"):
                    texts[name] += getattr(choice.delta, name)
                for one in choice.delta.tool_calls:
                    calls[one.index]["id"] = one.id or calls[one.index]["id"]
                    calls[one.index]["name"] += one.function.name + one.custom.name
                    calls[one.index]["arguments"] += one.function.arguments + one.custom.input
                function = choice.delta.function_call
                if function.name or function.arguments:
                    calls[-1]["name"] += function.name
                    calls[-1]["arguments"] += function.arguments
    assert reader.error is None
    found: dict[str, Any] = {name: text for name, text in texts.items() if text}
    if calls:
        found["calls"] = [{key: text for key, text in calls[index].items() if text} for index in sorted(calls)]
    return found


def assembled(events: list[Event]) -> dict[str, Any]:
    """Return the same for a unary call."""
    response = parse_streamed_response(b"".join(sse(events)), 1 << 20)
    (choice,) = response.choices
    source = to_json(choice.message)
    found = {
        key: source[key] for key in ("role", "content", "reasoning_content", "reasoning", "refusal") if source.get(key)
    }
    holders = source.get("tool_calls", []) + [{"function": source.get("function_call")}] * ("function_call" in source)
    if holders:
        found["calls"] = []
        for holder in holders:
            function = holder.get("function") or holder.get("custom") or {}
            one = {"id": holder.get("id"), "name": function.get("name")}
            one["arguments"] = function.get("arguments") or function.get("input")
            found["calls"].append({key: value for key, value in one.items() if value})
    return found


HELLO = [delta({"role": "assistant", "content": "Hel"}), delta({"content": "lo"})]
WEATHER = {"calls": [{"id": "a", "name": "get_weather", "arguments": '{"city":"Rome"}'}]}
STREAMS: dict[str, tuple[list[Event], dict[str, Any]]] = {
    # A whole message at the end.
    "message after deltas": (
        [*HELLO, message({"role": "assistant", "content": "Hello"}, "stop")],
        {"content": "Hello"},
    ),
    "message after one delta": (
        [delta({"content": "Hello"}), message({"content": "Hello"}, "stop")],
        {"content": "Hello"},
    ),
    "message that adds": ([*HELLO, message({"content": "Hello world"}, "stop")], {"content": "Hello world"}),
    "message that is trimmed": (
        [*HELLO, delta({"content": " \n"}), message({"content": "Hello"})],
        {"content": "Hello \n"},
    ),
    "message that differs": ([*HELLO, message({"content": "HELLO, world"}, "stop")], {"content": "Hello"}),
    "message that differs inside": ([*HELLO, message({"content": "Hexlo world"}, "stop")], {"content": "Hello"}),
    "message beside an empty delta": ([*HELLO, both({}, {"content": "Hello!"}, "stop")], {"content": "Hello!"}),
    "message beside a delta null": (
        [*HELLO, delta(None, "stop", message={"content": "Hello!"})],
        {"content": "Hello!"},
    ),
    "message after the finish": ([*HELLO, delta({}, "stop"), message({"content": "Hello"})], {"content": "Hello"}),
    "message twice": ([*HELLO, *[message({"content": "Hello"}, "stop")] * 2], {"content": "Hello"}),
    "message alone": ([message({"role": "assistant", "content": "Hello"}, "stop")], {"content": "Hello"}),
    "message with parts": ([*HELLO, message({"content": [{"type": "text", "text": "Hello!"}]})], {"content": "Hello!"}),
    "message after the template": (
        [delta({"content": piece}) for piece in ("Hel", "lo", " ", "wor", "ld", "\u00e9", "")]
        + [message({"content": "Hello world\u00e9!"}, "stop")],
        {"content": "Hello world\u00e9!"},
    ),
    "message after a long text": (
        [*[delta({"content": piece}) for piece in (LONG, LONG, "x")], message({"content": f"{LONG}{LONG}x"}, "stop")],
        {"content": f"{LONG}{LONG}x"},
    ),
    "message with every text": (
        [
            delta({"reasoning_content": "a", "reasoning": "x", "refusal": "n"}),
            message({"reasoning_content": "ab", "reasoning": "xy", "refusal": "no", "content": "c"}, "stop"),
        ],
        {"reasoning_content": "ab", "reasoning": "xy", "refusal": "no", "content": "c"},
    ),
    # A whole message in each event.
    "messages so far": (
        [message({"content": text}) for text in ("", "H", "Hel", "Hel", "Hello")],
        {"content": "Hello"},
    ),
    "messages so far, then shorter": (
        [message({"content": text}) for text in ("Hel", "Hello ", "Hello")],
        {"content": "Hello "},
    ),
    "messages so far beside deltas": (
        [both({"content": "Hel"}, {"content": "Hel"}), both({"content": "lo"}, {"content": "Hello"}, "stop")],
        {"content": "Hello"},
    ),
    "messages ahead of the deltas": (
        [both({"content": "He"}, {"content": "Hel"}), both({"content": "lo"}, {"content": "Hello"}, "stop")],
        {"content": "Hello"},
    ),
    "messages that are pieces": (
        [message({"content": text}) for text in ("Hel", "lo", " wor", "ld")],
        {"content": "Hello world"},
    ),
    "messages that are pieces, then whole": (
        [message({"content": text}) for text in ("Hel", "lo", "Hello")],
        {"content": "Hello"},
    ),
    "messages with calls so far": (
        [
            message(whole_call("get_weather", "", id="a")),
            message(whole_call("get_weather", '{"city":', id="a")),
            message(whole_call("get_weather", '{"city":"Rome"}', id="a"), "tool_calls"),
        ],
        WEATHER,
    ),
    "messages with pieces of calls": (
        [
            message(whole_call("get_weather", '{"city":', id="a")),
            message({"tool_calls": [{"function": {"arguments": '"Rome"}'}}]}, "tool_calls"),
        ],
        WEATHER,
    ),
    # Deltas that repeat.
    "last delta repeats all": ([*HELLO, delta({"content": "Hello"}, "stop")], {"content": "Hello"}),
    "last delta repeats all and adds": ([*HELLO, delta({"content": "Hello!"}, "stop")], {"content": "Hello!"}),
    "delta after the finish repeats all": (
        [*HELLO, delta({}, "stop"), delta({"content": "Hello"})],
        {"content": "Hello"},
    ),
    "last delta of a short text": (
        [delta({"content": "ha"})] * 2 + [delta({"content": "haha"}, "stop")],
        {"content": "hahahaha"},
    ),
    "equal deltas": ([delta({"content": "no, "})] * 4 + [delta({"content": "no, "}, "stop")], {"content": "no, " * 5}),
    "two equal halves": ([delta({"content": LONG}), delta({"content": LONG}, "stop")], {"content": LONG * 2}),
    "finish_reason null as text": ([*HELLO, delta({"content": "Hello"}, "null")], {"content": "HelloHello"}),
    # Tool calls.
    "call again in a message": (
        [
            delta(call("get_weather", '{"city":"Rome"}', id="a")),
            message(whole_call("get_weather", '{"city":"Rome"}', id="a")),
        ],
        WEATHER,
    ),
    "call again without an id": (
        [delta(call("get_weather", '{"city":"Rome"}', id="a")), message(whole_call("get_weather", '{"city":"Rome"}'))],
        WEATHER,
    ),
    "call again under another id": (
        [
            delta(call("get_weather", '{"city":"Rome"}', id="a")),
            message(whole_call("get_weather", '{"city":"Rome"}', id="b")),
        ],
        WEATHER,
    ),
    "call again as an object": (
        [delta(call("get_weather", '{"city":"Rome"}', id="a")), message(whole_call("get_weather", {"city": "Rome"}))],
        WEATHER,
    ),
    "call again beside a delta": (
        [
            delta(call("get_weather", '{"city":', id="a")),
            both({"content": None}, whole_call("get_weather", '{"city":"Rome"}', id="a"), "tool_calls"),
        ],
        WEATHER,
    ),
    "call first in a message": (
        [delta({"content": ""}), message(whole_call("get_weather", '{"city":"Rome"}', id="a"), "tool_calls")],
        WEATHER,
    ),
    "another call in a message": (
        [
            delta(call("get_weather", '{"city":"Rome"}', id="a")),
            message(
                {
                    "tool_calls": [
                        {"id": "a", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}},
                        {"id": "b", "function": {"name": "get_time", "arguments": "{}"}},
                    ]
                }
            ),
        ],
        {"calls": [*WEATHER["calls"], {"id": "b", "name": "get_time", "arguments": "{}"}]},
    ),
    "calls of another name in a message": (
        [delta(call("f", "{}", id="a")), message(whole_call("g", "{}", id="b"))],
        {"calls": [{"id": "a", "name": "f", "arguments": "{}"}, {"id": "b", "name": "g", "arguments": "{}"}]},
    ),
    "whole call in a later delta": (
        [
            delta(call("get_weather", '{"city":', id="a")),
            delta(call(None, '"Rome"}')),
            delta(call("get_weather", '{"city":"Rome"}', id="a"), "tool_calls"),
        ],
        WEATHER,
    ),
    "whole call in a later delta, as an object": (
        [delta(call("f", {"x": 1}, id="a")), delta(call("f", {"x": 1}, id="a"), "tool_calls")],
        {"calls": [{"id": "a", "name": "f", "arguments": '{"x":1}'}]},
    ),
    "equal pieces of arguments": (
        [delta(call("f", "[", id="a")), *[delta(call(None, piece)) for piece in ("[", "]", "]")]],
        {"calls": [{"id": "a", "name": "f", "arguments": "[[]]"}]},
    ),
    "equal halves of arguments": (
        [delta(call("f", '{"a":', id="a")), *[delta(call(None, piece)) for piece in ('{"a":', "1}}")]],
        {"calls": [{"id": "a", "name": "f", "arguments": '{"a":{"a":1}}'}]},
    ),
    "legacy call again in a message": (
        [
            delta({"function_call": {"name": "f", "arguments": '{"x":'}}),
            message({"function_call": {"name": "f", "arguments": '{"x":1}'}}, "function_call"),
        ],
        {"calls": [{"name": "f", "arguments": '{"x":1}'}]},
    ),
    "legacy call again beside a delta": (
        [
            delta({"function_call": {"name": "f", "arguments": ""}}),
            both({"function_call": {"arguments": '{"x"'}}, {"function_call": {"name": "f", "arguments": '{"x":1}'}}),
        ],
        {"calls": [{"name": "f", "arguments": '{"x":1}'}]},
    ),
    "content of another type beside text": (
        [both({"content": "a", "refusal": "b"}, {"content": "a", "refusal": ["b"]}), message({"content": "a"})],
        {"content": "a", "refusal": "b"},
    ),
    "custom call again in a message": (
        [
            delta({"tool_calls": [{"index": 0, "id": "a", "custom": {"name": "c", "input": "12"}}]}),
            message({"tool_calls": [{"id": "a", "custom": {"name": "c", "input": "123"}}]}),
        ],
        {"calls": [{"id": "a", "name": "c", "arguments": "123"}]},
    ),
    # Names.
    "name in pieces": (
        [
            delta(call("get_", "", id="a")),
            delta(call("wea")),
            delta(call("ther", '{"city":')),
            delta(call(None, '"Rome"}')),
        ],
        WEATHER,
    ),
    "name so far": (
        [delta(call("get_", id="a")), delta(call("get_weather")), delta(call("get_weather", '{"city":"Rome"}'))],
        WEATHER,
    ),
    "name in each delta": (
        [delta(call("get_weather", piece, id="a")) for piece in ("", '{"city":', '"Rome"', "}")],
        WEATHER,
    ),
    "name in pieces, then whole": (
        [
            delta(call("get_", id="a")),
            delta(call("weather", '{"city":"Rome"}')),
            message(whole_call("get_weather", "{}")),
        ],
        WEATHER,
    ),
    "name whole in the message only": (
        [delta(call("get_", id="a")), message(whole_call("get_weather", '{"city":"Rome"}'))],
        WEATHER,
    ),
    "another name after arguments": (
        [delta(call("f", '{"x"', id="a")), delta(call("g", ":1}"))],
        {"calls": [{"id": "a", "name": "f", "arguments": '{"x":1}'}]},
    ),
    "name of a custom tool in pieces": (
        [delta({"tool_calls": [{"index": 0, "id": "a", "custom": {"name": name}}]}) for name in ("co", "de", "code")],
        {"calls": [{"id": "a", "name": "code"}]},
    ),
    "legacy name in pieces": (
        [delta({"function_call": {"name": "get_"}}), delta({"function_call": {"name": "x", "arguments": "{}"}})],
        {"calls": [{"name": "get_x", "arguments": "{}"}]},
    ),
}


@pytest.mark.parametrize(("events", "expected"), STREAMS.values(), ids=STREAMS)
def test_stream(events: list[Event], expected: dict[str, Any]) -> None:
    found = [streamed(events, at_once=at_once, coalesce=at_once) for at_once in (False, True)]
    for source in [*found, assembled(events)]:
        source.pop("role", None)
        assert source == expected


def test_the_role_comes_once() -> None:
    events = [*HELLO, message({"role": "assistant", "content": "Hello"}, "stop")]
    assert streamed(events, at_once=False)["role"] == "assistant"
    assert streamed(events[1:], at_once=False)["role"] == "assistant"


OTHERS: dict[str, tuple[list[Event], list[Any]]] = {
    # name: (events, the extras of the deltas)
    "lists so far": (
        [message({"reasoning_details": list(range(n))}) for n in (1, 1, 3)],
        [{"reasoning_details": [0]}, None, {"reasoning_details": [1, 2]}],
    ),
    "list after its pieces": (
        [delta({"details": [1]}), delta({"details": [2]}), message({"details": [1, 2]}, "stop")],
        [{"details": [1]}, {"details": [2]}, None],
    ),
    "another key": ([delta({"content": "a"}), message({"content": "a", "x": 0})], [None, {"x": 0}]),
    "another key of a call": (
        [delta(call("f", "{}", id="a")), message({"tool_calls": [{"id": "a", "x": 1, "function": {"name": "f"}}]})],
        [None, None],
    ),
    "another key of a function": (
        [
            delta({"function_call": {"name": "f", "arguments": "{}", "x": 1}}),
            delta({"function_call": {"arguments": 5}}),
            message({"function_call": {"name": "f", "arguments": "{}", "x": 1}}),
            message({"function_call": {"name": "f", "y": 2}, "z": 3}),
        ],
        [None, None, None, {"z": 3}],
    ),
    "of another type": (
        [message({"content": 5, "tool_calls": 5}), message({"content": {}, "tool_calls": [5]})],
        [{"content": 5, "tool_calls": 5}, {"tool_calls": [5]}],
    ),
    "long and many keys": (
        [delta({"k" * 99: 1, **MANY, "function_call": {"name": "f", **MANY}}), delta({"k" * 99: 1, **MANY})],
        [{"k" * 99: 1, **MANY}] * 2,
    ),
    "empty": ([message({"tool_calls": [], "function_call": {}}), message({"function_call": {}})], [None, None]),
}


@pytest.mark.parametrize(("events", "expected"), OTHERS.values(), ids=OTHERS)
def test_other_keys(events: list[Event], expected: list[Any]) -> None:
    reader = StreamReader(1 << 20)
    chunks = [chunk for data in sse(events) for chunk in reader.feed(data)]
    assert [json.loads(chunk.choices[0].delta.extra_json or "null") for chunk in chunks] == expected


def test_a_message_beside_a_delta_stays_an_extra() -> None:
    whole = {
        "role": "assistant",
        "content": "Hello",
        **call("f", {"x": 1}),
        "function_call": {"name": "g", "arguments": {}},
    }
    (chunk,) = StreamReader(1 << 20).feed(sse([both({"content": "Hel"}, whole)])[0])
    assert json.loads(chunk.choices[0].extra_json) == {"message": whole}
    assert to_json(chunk.choices[0].delta) == {
        "content": "Hello",
        "tool_calls": [{"function": {"name": "f", "arguments": '{"x":1}'}}],
        "function_call": {"name": "g", "arguments": "{}"},
    }


def test_calls_beside_calls() -> None:
    """A delta with one call, and a whole message with this call and another one."""
    calls = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    calls.append({"id": "c", "function": 5})  # type: ignore[dict-item]
    (chunk,) = StreamReader(1 << 20).feed(sse([both({"tool_calls": calls[:1]}, {"tool_calls": calls})])[0])
    assert [(one.index, one.id) for one in chunk.choices[0].delta.tool_calls] == [(0, "a"), (1, "b"), (2, "c")]


def test_choices_are_apart() -> None:
    events: list[Event] = [
        {"choices": [{"index": index, "delta": {"content": text}}]}
        for index, text in ((0, "Hel"), (1, "Hel"), (0, "lo"), (0, "!"), (0, "?"), (1, "p"), (1, "s"))
    ]
    events.append(
        {
            "choices": [
                {"index": index, "message": {"content": text}} for index, text in enumerate(("Hello!?", "Helps me"))
            ]
        }
    )
    response = parse_streamed_response(b"".join(sse(events)), 1 << 20)
    assert [choice.message.content for choice in response.choices] == ["Hello!?", "Helps me"]


INDEXES: dict[str, tuple[list[list[Any]], list[list[int]]]] = {
    # name: (the upstream's indexes of each event, the right ones)
    "valid": ([[0, 1], [1], [0]], [[0, 1], [1], [0]]),
    "digits": ([["0", "1"], ["1"], ["0"]], [[0, 1], [1], [0]]),
    "whole floats": ([[0.0, 1.0], [1.0]], [[0, 1], [1]]),
    "null": ([[None, None], [None]], [[0, 1], [0]]),
    "missing": ([["missing"] * 2, ["missing"] * 2], [[0, 1], [0, 1]]),
    "negative": ([[-1, -2], [-2], [-1]], [[0, 1], [1], [0]]),
    "negative, an event each": ([[-1], [-2], [-1]], [[0], [1], [0]]),
    "beyond 31 bits": ([[2**31, 2**31 + 1], [2**31 + 1]], [[0, 1], [1]]),
    "beyond 64 bits": ([[2**64, 1e300], [1e300]], [[0, 1], [1]]),
    "fractions": ([[0.5, 1.5], [1.5]], [[0, 1], [1]]),
    "words": ([["a", "b"], ["b"], ["a"], ["c"]], [[0, 1], [1], [0], [2]]),
    "long words": ([["a" * 99, "b" * 99], ["b" * 99]], [[0, 1], [1]]),
    "booleans": ([[False, True], [True]], [[0, 1], [1]]),
    "lists and objects": ([[[], {}], [[], {}]], [[0, 1], [0, 1]]),
    "beside a valid one": ([[1, None], ["x", 0]], [[1, 0], [1, 0]]),
    "long digits": ([["9" * 10, "9" * 11]], [[0, 1]]),
}


def choice_of(index: Any, key: str) -> dict[str, Any]:
    return {**({} if index == "missing" else {"index": index}), key: {"content": "x"}}


@pytest.mark.parametrize(("events", "expected"), INDEXES.values(), ids=INDEXES)
def test_indexes_of_choices(events: list[list[Any]], expected: list[list[int]]) -> None:
    reader = StreamReader(1 << 20)
    sources: list[Event] = [{"choices": [choice_of(index, "delta") for index in indexes]} for indexes in events]
    chunks = [chunk for data in sse(sources) for chunk in reader.feed(data)]
    assert [[choice.index for choice in chunk.choices] for chunk in chunks] == expected
    body = json.dumps({"choices": [choice_of(index, "message") for index in events[0]]}).encode()
    response = parse_response(body)
    assert [choice.index for choice in response.choices] == expected[0]
    assert not any(choice.extra_json for choice in response.choices)


def test_too_many_unusable_indexes() -> None:
    reader = StreamReader(1 << 20)
    for number in range(limits.MAX_CHOICES + 1):
        assert reader.error is None
        reader.feed(sse([{"choices": [{"index": f"n{number}"}]}])[0])
    assert reader.error is not None


def test_choices_that_are_no_objects_are_extras() -> None:
    response = parse_response(b'{"choices":[{"index":null},5]}')
    assert not response.choices
    assert json.loads(response.extra_json)["choices"][1] == 5
