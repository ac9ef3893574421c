"""Halves of surrogate pairs: joined across deltas of the same text, else U+FFFD."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc_server.core.openai.surrogates import SurrogateJoiner
from chatrpc_server.core.text import well_formed

HIGH, LOW, LOST = "\ud83d", "\ude00", "\ufffd"  # of 😀


def choice(delta: Any, index: Any = 0, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, **more}]}


def call(text: str, index: Any = 0) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def custom(text: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "custom": {"input": text}}]}


def legacy(text: str) -> dict[str, Any]:
    return {"function_call": {"arguments": text}}


def spoken(text: str) -> dict[str, Any]:
    return {"audio": {"transcript": text}}


def part(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}]}


END = {"finish_reason": "stop"}
STREAMS: dict[str, list[tuple[Any, Any]]] = {
    # name: (chunk, the same repaired), in order
    "two deltas": [
        (choice({"content": "a" + HIGH}), choice({"content": "a"})),
        (choice({"content": LOW + "b"}), choice({"content": "😀b"})),
    ],
    "over an empty delta": [
        (choice({"content": HIGH}), choice({"content": ""})),
        (choice({"content": ""}), choice({"content": ""})),
        (choice({"content": LOW}), choice({"content": "😀"})),
    ],
    "over another text": [
        (choice({"content": HIGH}), choice({"content": ""})),
        (choice({"reasoning": "b"}), choice({"reasoning": "b"})),
        (choice({"content": LOW}), choice({"content": "😀"})),
    ],
    "no low follows": [
        (choice({"content": "a" + HIGH}), choice({"content": "a"})),
        (choice({"content": "b"}), choice({"content": LOST + "b"})),
    ],
    "the low of another choice": [
        (choice({"content": HIGH}, 0), choice({"content": ""}, 0)),
        (choice({"content": LOW}, 1), choice({"content": LOST}, 1)),
        (choice({"content": LOW}, 0), choice({"content": "😀"}, 0)),
    ],
    "the low of another call": [
        (choice(call(HIGH, 0)), choice(call("", 0))),
        (choice(call(LOW, 1)), choice(call(LOST, 1))),
        (choice(call(LOW, 0)), choice(call("😀", 0))),
    ],
    "the end in a separate chunk": [
        (choice({"content": HIGH}), choice({"content": ""})),
        (choice({}, **END), choice({"content": LOST}, **END)),
    ],
    "the end without delta": [
        (choice({"reasoning": HIGH}), choice({"reasoning": ""})),
        (choice(None, **END), choice({"reasoning": LOST}, **END)),
    ],
    "the end with the half": [(choice({"content": "a" + HIGH}, **END), choice({"content": "a" + LOST}, **END))],
    "the end of another choice": [
        (choice({"content": HIGH}), choice({"content": ""})),
        (choice({}, 1, **END), choice({}, 1, **END)),
        (choice({"content": LOW}), choice({"content": "😀"})),
    ],
    "invalid indexes": [
        (choice({"content": HIGH}, [1]), choice({"content": ""}, [1])),
        (choice({"content": LOW}, [1]), choice({"content": "😀"}, [1])),
    ],
}


STREAMS |= {
    f"the end, {name}": [
        (choice(delta(HIGH)), choice(delta(""))),
        (choice(before, **END), choice(after, **END)),
    ]
    for name, delta, before, after in [
        ("arguments", call, None, call(LOST)),
        (
            "arguments, another call",
            call,
            {"tool_calls": [{"index": 1}]},
            {"tool_calls": [{"index": 1}, *call(LOST)["tool_calls"]]},
        ),
        ("custom tool", custom, {"tool_calls": 5}, custom(LOST)),
        ("legacy arguments", legacy, {}, legacy(LOST)),
        ("transcript", spoken, {"audio": {"id": "a"}}, {"audio": {"id": "a", "transcript": LOST}}),
        ("part", part, {"content": []}, part(LOST)),
        ("part, then text", part, {"content": "b"}, {"content": "b" + LOST}),
    ]
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_stream(stream: list[tuple[Any, Any]]) -> None:
    joiner = SurrogateJoiner()
    for chunk, expected in stream:
        joiner.join(chunk)
        assert chunk == expected
    assert not joiner.waiting


TEXTS: dict[str, Any] = {
    "content": lambda text: {"content": text},
    "reasoning_content": lambda text: {"reasoning_content": text},
    "reasoning": lambda text: {"reasoning": text},
    "refusal": lambda text: {"refusal": text},
    "tool arguments": call,
    "tool arguments, no index": lambda text: {"tool_calls": [{"function": {"arguments": text}}]},
    "custom tool input": custom,
    "legacy arguments": legacy,
    "transcript": spoken,
    "part": part,
}


@pytest.mark.parametrize("delta", TEXTS.values(), ids=TEXTS)
def test_every_text_is_joined(delta: Any) -> None:
    joiner = SurrogateJoiner()
    first, second = choice(delta("a" + HIGH)), choice(delta(LOW + "b"))
    joiner.join(first)
    assert (first, joiner.waiting) == (choice(delta("a")), True)
    joiner.join(second)
    assert (second, joiner.waiting) == (choice(delta("😀b")), False)


def test_the_rest() -> None:
    joiner = SurrogateJoiner()
    assert joiner.flush() is None
    both = {**call("a" + HIGH, 1), "reasoning": HIGH}
    joiner.join({"id": "i", "model": "m", **choice({"content": HIGH}, None), "usage": {}})
    joiner.join({"id": "j", "created": 1, "choices": [choice({}, None)["choices"][0], *choice(both, 2)["choices"]]})
    assert joiner.flush() == {
        "id": "j",
        "created": 1,
        "choices": [
            {"index": None, "delta": {"content": LOST}},
            {"index": 2, "delta": {**call(LOST, 1), "reasoning": LOST}},
        ],
    }
    assert (joiner.waiting, joiner.flush()) == (False, None)


@pytest.mark.parametrize(
    "chunk",
    [{}, {"choices": 5}, {"choices": [5, None]}, choice(5), choice({"content": 5, "tool_calls": 5, "audio": []})],
    ids=str,
)
def test_odd_shapes_are_unchanged(chunk: dict[str, Any]) -> None:
    before = repr(chunk)
    SurrogateJoiner().join(chunk)
    assert repr(chunk) == before


@given(st.text(st.sampled_from(["a", "é", "😀", HIGH, LOW])), st.data())
def test_every_cut_gives_the_same_text(text: str, data: st.DataObject) -> None:
    units = text.encode("utf-16-le", "surrogatepass")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(units) // 2))))
    bounds = [0, *(2 * cut for cut in cuts), len(units)]
    pieces = [units[start:end].decode("utf-16-le", "surrogatepass") for start, end in pairwise(bounds)]
    joiner, received = SurrogateJoiner(), ""
    for chunk in [*(choice({"content": piece}) for piece in pieces), choice({}, **END)]:
        joiner.join(chunk)
        received += chunk["choices"][0]["delta"].get("content", "")
    assert received == well_formed(text)
