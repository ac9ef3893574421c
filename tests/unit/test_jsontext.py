"""JSON: valid, as servers write it, and as callers may write it."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc_server.core.openai import jsontext
from chatrpc_server.core.openai.jsontext import Raw
from chatrpc_server.process import memory

DEEP = 9999
REFUSED = "refused"


def outcome(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ValueError:
        return REFUSED


READ: dict[str, tuple[bytes, Any, Any]] = {
    # case: text, its strict value, its lenient value
    "object": (b'{"a":[1,"b",null,true]}', {"a": [1, "b", None, True]}, {"a": [1, "b", None, True]}),
    "white space around": (b"\n\n {} \r\n", {}, {}),
    "more bits": (b'{"a":[-18446744073709551616, 1e5]}', {"a": [-(2**64), 1e5]}, {"a": [-(2**64), 1e5]}),
    "more bits, at the ends": (b"[18446744073709551616]", [2**64], [2**64]),
    "digits that are no integer": (
        b'{"a":0.1234567890123456789,"12345678901234567890":"12345678901234567890"}',
        {"a": 0.12345678901234568, "12345678901234567890": "12345678901234567890"},
        {"a": 0.12345678901234568, "12345678901234567890": "12345678901234567890"},
    ),
    "64 bits": (b"18446744073709551615", 2**64 - 1, 2**64 - 1),
    "the later of two": (b'{"a":1,"a":2}', {"a": 2}, {"a": 2}),
    "a pair of escapes": (rb'"\ud83d\ude00"', "😀", "😀"),
    "byte order mark": (b"\xef\xbb\xbf{}", REFUSED, {}),
    "half a pair": (rb'"\ud83d"', REFUSED, "\ud83d"),
    "infinity": (b"[-Infinity]", REFUSED, [-math.inf]),
    "beyond doubles": (b"1e999", REFUSED, math.inf),
    "invalid UTF-8": (b'"\xff"', REFUSED, "\ufffd"),
    "cut": (b'{"a":', REFUSED, REFUSED),
    "nothing": (b"", REFUSED, REFUSED),
    "HTML": (b"<html>", REFUSED, REFUSED),
    "two values": (b"{}{}", REFUSED, REFUSED),
    "too deep": (b"[" * DEEP + b"]" * DEEP, REFUSED, REFUSED),
    "too many digits": (b"9" * 5000, REFUSED, REFUSED),
}


@pytest.mark.parametrize(("data", "strict", "lenient"), READ.values(), ids=READ)
def test_reading_servers(data: bytes, strict: Any, lenient: Any) -> None:
    assert outcome(jsontext.loads, data) == strict
    assert outcome(jsontext.loads_leniently, data) == lenient


def test_nan_is_read_leniently() -> None:
    assert math.isnan(jsontext.loads_leniently(b"NaN"))


WRITTEN: dict[str, tuple[str, Any]] = {
    "object": ('{"a": 1.0}', {"a": 1.0}),
    "100 bits": (str(2**100), 2**100),
    "half a pair": (r'"\ud83d"', "\ud83d"),
    "NaN": ("[NaN]", REFUSED),
    "infinity": ("Infinity", REFUSED),
    "beyond doubles": ("[1e999]", [math.inf]),
    "near to nothing": ("[1e-999]", [0.0]),
    "nothing": ("", REFUSED),
    "byte order mark": ("\ufeff{}", REFUSED),
    "too deep": ("[" * DEEP + "]" * DEEP, REFUSED),
    "too many digits": ("9" * 5000, REFUSED),
}


@pytest.mark.parametrize(("text", "expected"), WRITTEN.values(), ids=WRITTEN)
def test_reading_callers(text: str, expected: Any) -> None:
    value = outcome(jsontext.loads_exactly, text)
    assert (type(value), value) == (type(expected), expected)


TEXT = '{"a" : 1.10,\n"a":1e400}'
OUT: dict[str, tuple[Any, bytes]] = {
    "compact": ({"a": [1, 1.0, True, None, "é"]}, '{"a":[1,1.0,true,null,"é"]}'.encode()),
    "raw, byte for byte": ({"a": [Raw(TEXT)]}, b'{"a":[' + TEXT.encode() + b"]}"),
    "100 bits": ([2**100], b"[1267650600228229401496703205376]"),
    "half a pair": (["\ud83d", "é"], rb'["\ud83d","\u00e9"]'),
    "half a pair as key": ({"\ude00": 1}, rb'{"\ude00":1}'),
    "deeper than the fast path": (jsontext.loads(b"[" * 400 + b"]" * 400), b"[" * 400 + b"]" * 400),
    "NaN": ([math.nan, math.inf, -math.inf, 1.5], b"[null,null,null,1.5]"),
    "NaN, slow path": ([math.nan, math.inf, -math.inf, 1.5, 2**64], b"[null,null,null,1.5,18446744073709551616]"),
    "NaN only in words": (["NaN", 2**64], b'["NaN",18446744073709551616]'),
    "raw, slow path": ({"a": Raw('{ "b": [1.10]}'), "c": 2**64}, b'{"a":{ "b": [1.10]},"c":18446744073709551616}'),
}


NUMBERS = [
    *("1e400", "-1E+400", "1e-400", "-2.5E-400", "1e999", "123.5e4000", "0.1e-330"),
    *("1234567890123456789", "-12345678901234567890", "18446744073709551616", "9" * 400),
    *(
        "0.123456789012345678",
        "1234567890.123456789",
        "9007199254740993.00",
        "1.50000000000000000000",
        "-0.000" + "1" * 18,
    ),
    *("12345678901234567.8e-30", "1.2345678901234567890e5"),
]
"""Numbers that a double cannot hold, or would write otherwise."""
PLACES = {
    "alone": b"%b",
    "first": b"[%b,1.5]",
    "after a blank": b'{"a": %b ,"b":null}',
    "deep": b'{"a":[{"b":[[%b]]}],"c":"text"}',
    "beside half a pair": b'{"a":%b,"b":"\\ud83d"}',
}


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_stay_as_written(number: str) -> None:
    for place in PLACES.values():
        data = place % number.encode()
        for value in (jsontext.loads_leniently(data), jsontext.loads_exactly(data.decode())):
            assert number.encode() in jsontext.dumps(value), place
        if place != b"%b" and b"ud83d" not in data and math.isfinite(float(number)):
            assert number.encode() in jsontext.dumps(jsontext.loads(data)), place


def test_numbers_stay_as_written_in_large_json() -> None:
    large = f"[{'1,' * 40_000}1e400,1.50000000000000000000]"
    for value in (jsontext.loads_leniently(large.encode()), jsontext.loads_exactly(large)):
        assert jsontext.dumps(value) == large.encode()


@pytest.mark.parametrize("text", ["0.5", "-0.12345678901234567", "5e-324", "1e308", "0e999", "0.0e-999", "-0.0", "1e2"])
def test_numbers_that_a_double_holds_are_doubles(text: str) -> None:
    for value in (jsontext.loads(text.encode()), jsontext.loads_leniently(text.encode()), jsontext.loads_exactly(text)):
        assert (type(value), value) == (float, float(text))


@pytest.mark.parametrize(("value", "expected"), OUT.values(), ids=OUT)
def test_writing(value: Any, expected: bytes) -> None:
    assert jsontext.dumps(value) == expected


@pytest.mark.parametrize(
    "end", ["", "\u6f22", "\N{GRINNING FACE}", '"\\\n\x00'], ids=["ascii", "cjk", "emoji", "escapes"]
)
@pytest.mark.parametrize("count", [10, 1 << 16, 3 << 20], ids=str)
def test_writing_text(end: str, count: int) -> None:
    text = "x" * count + end
    data = jsontext.dumps({"a": jsontext.of_text(text)})
    assert jsontext.loads(data) == {"a": text}


def test_written_text_holds_its_own_memory() -> None:
    text = "x" * (10 << 20) + "\N{GRINNING FACE}"
    before = memory.allocated_bytes()
    data = jsontext.dumps({"a": text})
    assert memory.allocated_bytes() - before < 3 * len(data)  # the text keeps its encoding


def test_what_orjson_rejects_is_written_value_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Because other threads wait for each step in C: 5,000 integers of 4,000 digits would take 1.2 s in one step."""
    steps: list[Any] = []
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda value, **options: steps.append(value) or dumps(value, **options))
    assert jsontext.dumps({"a": [2**64, [], {}]}) == b'{"a":[18446744073709551616,[],{}]}'
    assert steps == ["a", 2**64]


def test_writing_too_deep() -> None:
    value: Any = 1
    for _ in range(DEEP):
        value = [value]
    with pytest.raises(ValueError, match="nested too deeply"):
        jsontext.dumps(value)


STRING = st.text(st.characters())  # with surrogates
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | STRING,
    lambda values: st.lists(values) | st.dictionaries(STRING, values),
    max_leaves=10,
)


@pytest.mark.parametrize("data", [b'[1,"a\xff",{"b":NaN}]', b'"\\ud83d"', b"\xef\xbb\xbf[]", b"{", b"[" * DEEP])
def test_large_text_is_read_like_small_text(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    small = outcome(jsontext.loads_leniently, data)
    monkeypatch.setattr(jsontext, "_LARGE_CHARACTERS", 0)
    assert repr(outcome(jsontext.loads_leniently, data)) == repr(small)


@given(VALUES)
def test_written_text_can_be_read(value: Any) -> None:
    assert jsontext.loads_exactly(jsontext.dumps(value).decode()) == value
    assert jsontext.loads_leniently(jsontext.dumps(value)) == value


def test_texts_of_many_values_take_little_memory() -> None:
    before = memory.allocated_bytes()
    texts = [jsontext.raw({"a": number}) for number in range(10_000)]
    assert memory.allocated_bytes() - before < len(texts) * 1000
    assert jsontext.dumps(texts[:2]) == b'[{"a":0},{"a":1}]'
