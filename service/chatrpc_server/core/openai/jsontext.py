"""Converts JSON text to values and back: fast for well-formed text, lenient for the text that some servers send.

orjson rejects NaN, lone surrogates (`"\\ud83d"`), invalid UTF-8, and integers beyond 64 bits when it writes. Real
providers send all of these, so the standard library parses the text that orjson rejects.
"""

import json
import re
from typing import Any

import orjson

from chatrpc_server.core.openai import json_cursor
from chatrpc_server.core.openai.json_cursor import TooManyValues as TooManyValues  # part of this interface
from chatrpc_server.core.text import decode_utf8

MAX_VALUES = 8_000_000
"""Most values in JSON of an upstream: the probabilities of tokens have that many in 64 MiB."""
MAX_CALLER_VALUES = json_cursor.MAX_VALUES
"""Most values in JSON of a caller."""
_LARGE_CHARACTERS = 1 << 16
"""Bytes or characters from which JSON is parsed in pieces, except by orjson, and a text is written in pieces."""
_PIECE_CHARACTERS = 1 << 16
_LARGE_BYTES = 1 << 20
"""Bytes of written JSON from which it is copied."""
_ZEROS = bytes.maketrans(b"0123456789", b"0000000000")
"""Table for `bytes.translate`: turns all digits into 0. Finds long runs 8 times as fast as a regular expression."""
_MANY_DIGITS = b"0" * 19
_LONG_INTEGER = re.compile(rb"[\[:,\s]-?[0-9]{19,}\s*[,\]}]")
"""Integers of at least 19 digits, the fewest that exceed 64 bits. Can also match inside strings, which is harmless."""


def count_values(data: bytes, limit: int = MAX_VALUES) -> int:
    """Return the number of commas and opening brackets: about that of values, with those in strings.

    Raises `TooManyValues` if it exceeds the limit.
    """
    count = data.count(b",") + data.count(b"[") + data.count(b"{")
    if count > limit:
        raise TooManyValues(f"it has {count} commas and opening brackets; the limit is {limit}")
    return count


def loads(data: bytes) -> Any:
    """Return the value of well-formed JSON. Raises ValueError."""
    value = orjson.loads(data)
    # orjson turns integers beyond 64 bits into doubles. The check takes 0.3 µs for a usual chunk, 1 % of its cost.
    if _MANY_DIGITS in data.translate(_ZEROS) and _LONG_INTEGER.search(data):
        return loads_leniently(data)
    return value


def text(data: bytes) -> str:
    """Return the text of a JSON string without its quotation marks. Raises ValueError if it is invalid."""
    value: str = orjson.loads(b'"%b"' % data)
    return value


def loads_leniently(data: bytes) -> Any:
    """Return the value of JSON with the known deviations of servers. Raises ValueError."""
    try:
        text = decode_utf8(data)
        return json.loads(text) if len(data) < _LARGE_CHARACTERS else json_cursor.loads(text, _lenient.raw_decode)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def loads_exactly(text: str) -> Any:
    """Return the value of a caller's JSON: no NaN, and integers of any size stay integers. Raises ValueError."""
    try:
        if len(text) < _LARGE_CHARACTERS:
            return _caller.decode(text)
        count_values(text.encode(), MAX_CALLER_VALUES)
        return json_cursor.loads(text, _caller.raw_decode)
    except RecursionError:
        raise ValueError("nested too deeply") from None


_lenient = json.JSONDecoder()


class Raw:
    """Valid JSON text that `dumps` inserts unchanged."""

    __slots__ = ("text",)

    def __init__(self, text: str | bytes) -> None:
        self.text = text


def raw(value: Any) -> Raw:
    """Return the value as text, for `dumps` of an object around it. Raises ValueError like `dumps`."""
    return Raw(bytes(memoryview(dumps(value))))  # a copy, because the shortest of orjson's results keeps 4 KiB


def of_text(text: str) -> str | Raw:
    """Return a value that `dumps` writes as this text. A large text is written in pieces, to save memory.

    For a whole text of 19 MB orjson allocates 266 MB. If that fails, it ends the process.
    """
    if len(text) < _LARGE_CHARACTERS:
        return text
    pieces = (text[start : start + _PIECE_CHARACTERS] for start in range(0, len(text), _PIECE_CHARACTERS))
    return Raw(b'"%b"' % b"".join([orjson.dumps(piece)[1:-1] for piece in pieces]))


def dumps(value: Any) -> bytes:
    """Return compact JSON, with null for NaN and the infinities. The value can contain `Raw` at any place.

    Raises ValueError if the value is nested too deeply.
    """
    try:
        data = orjson.dumps(value, default=lambda item: orjson.Fragment(item.text))
        # A copy, because orjson's result keeps all memory that orjson has allocated: up to 14 times its length.
        return data if len(data) < _LARGE_BYTES else bytes(memoryview(data))
    except TypeError:
        pass
    pieces: list[str] = []
    try:
        _write(value, pieces)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return "".join(pieces).encode()


def _write(value: Any, pieces: list[str]) -> None:
    """Append the text of a value that orjson rejects.

    Not in one step in C: integers of 4,000 digits take quadratic time, and 20 MiB of them 1 s.
    """
    if isinstance(value, dict):
        separator = "{"
        for key, item in value.items():
            pieces.append(f"{separator}{json.dumps(key)}:")
            _write(item, pieces)
            separator = ","
        pieces.append("}" if value else "{}")
    elif isinstance(value, list):
        separator = "["
        for item in value:
            pieces.append(separator)
            _write(item, pieces)
            separator = ","
        pieces.append("]" if value else "[]")
    elif isinstance(value, Raw):
        pieces.append(value.text if isinstance(value.text, str) else value.text.decode())
    elif isinstance(value, float) and value - value != 0:  # NaN and the infinities
        pieces.append("null")
    else:
        pieces.append(json.dumps(value))


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _finite_float(text: str) -> float:
    value = float(text)
    if value - value != 0:  # an infinity
        raise ValueError("a number exceeds the range of a double")
    return value


_caller = json.JSONDecoder(parse_constant=_reject_constant, parse_float=_finite_float)
