"""JSON that is parsed in pieces: the same values and the same rejections as of the parser in one piece."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc_server.core.openai import json_cursor, jsontext

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=30,
)
DEEP = 9999


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_cursor, "_SMALL_CHARACTERS", 8)
    monkeypatch.setattr(jsontext, "_LARGE_CHARACTERS", 0)


def in_pieces(text: str) -> Any:
    return json_cursor.loads(text, json.JSONDecoder().raw_decode)


def outcome(function: Any, text: str) -> Any:
    try:
        return function(text)
    except ValueError:
        return ValueError


@given(value=VALUES, indent=st.sampled_from([None, 0, 3]))
def test_values_are_those_of_the_parser(value: Any, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    assert in_pieces(f"\n {text}\t\r\n") == value
    assert jsontext.loads_exactly(text) == value


@given(value=VALUES, data=st.data())
def test_invalid_text_is_rejected_like_by_the_parser(value: Any, data: st.DataObject) -> None:
    text = json.dumps([value])
    at = data.draw(st.integers(0, len(text)))
    instead = data.draw(st.sampled_from(["", "]", "}", ",", ":", '"', "{", "[", "1", " ", "\v"]))
    changed = text[:at] + instead + text[at + 1 :]
    assert outcome(in_pieces, changed) == outcome(json.loads, changed)


INVALID = {
    "nothing": "",
    "two values": "[] []",
    "a key that is no string": '{"aaaaaaaaaa":1,2:3}',
    "no colon": '{"aaaaaaaaaa" 1}',
    "no comma in an object": '{"aaaaaaaaaa":1 "b":2}',
    "no comma in an array": "[111111111 2]",
    "a comma at the end": "[111111111,]",
    "a comma at the end of an object": '{"aaaaaaaaaa":1,}',
    "cut off in an array": "[111111111,2",
    "cut off in an object": '{"aaaaaaaaaa":1',
}


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID)
def test_invalid_text(text: str) -> None:
    assert outcome(in_pieces, text) is ValueError


@pytest.mark.parametrize("text", ["[" * DEEP + "]" * DEEP, '{"aaaaaaaaaaa":[' + "[" * DEEP + "]" * DEEP + "]}"])
def test_deep_nesting_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        jsontext.loads_exactly(text)


def test_many_values_of_a_caller_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsontext, "MAX_CALLER_VALUES", 3)
    assert jsontext.loads_exactly("[[1],2]") == [[1], 2]
    with pytest.raises(jsontext.TooManyValues, match="it has 4 commas and opening brackets; the limit is 3"):
        jsontext.loads_exactly("[1,2,{}]")


NESTED = '{"aaaaaaaaaaa":' * 20
DENSE = {
    "objects": NESTED + "[" + "{}," * 500 + "0]" + "}" * 20,
    "keys": NESTED + "{" + ",".join(f'"k{number}":0' for number in range(500)) + "}" * 21,
    "levels": "[" + ("[" * 40 + "]" * 40 + ",") * 50 + "0]",
}


@pytest.mark.parametrize("text", DENSE.values(), ids=DENSE)
def test_each_step_in_c_is_small(text: str) -> None:
    steps: list[int] = []

    def decode(part: str, at: int) -> tuple[Any, int]:
        # A part of the text is all that the parser sees, whether or not it succeeds.
        try:
            value, end = json.JSONDecoder().raw_decode(part, at)
        except ValueError:
            steps.append(len(part) - at)
            raise
        steps.append(end - at)
        return value, end

    assert json_cursor.loads(text, decode) == json.loads(text)
    assert max(steps) <= 16  # the longest key here, or a small object or array
    assert sum(steps) < 3 * len(text)  # failed tries do not repeat for each level


def test_many_values_are_rejected_while_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_cursor, "MAX_VALUES", 6)
    assert in_pieces('[1111,2222,{"aaaaaaaaa":[3]}]') == [1111, 2222, {"aaaaaaaaa": [3]}]
    for text in ("[1111,2222,3333,4444,5555,6666,7777]", '{"aaaaaaaaa":[[],[],[]],"b":[]}', "[[[[[[[[]]]]]]]]"):
        with pytest.raises(jsontext.TooManyValues, match="it has more than 6 values besides token probabilities"):
            in_pieces(text)
