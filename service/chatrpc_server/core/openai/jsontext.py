"""Converts JSON text to values and back: fast for well-formed text, lenient for the text that some servers send.

orjson rejects NaN, lone surrogates (`"\\ud83d"`), invalid UTF-8, raw control characters in strings, numbers beyond a
double, and integers beyond 64 bits when it writes. Real providers send all of these, so the standard library parses the
text that orjson rejects. It also parses numbers that orjson would round. `dumps` writes them as they were written.
"""

import json
import re
from typing import Any

import orjson

from chatrpc_server.core.openai import json_cursor
from chatrpc_server.core.openai.exact_numbers import WrittenNumber, read_fraction
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
_ZEROS = bytes.maketrans(b"0123456789.E", b"0" * 11 + b"e")
"""Table for `bytes.translate`: turns digits and points into 0. Finds long runs 8 times as fast as a regex."""
_MANY_DIGITS = b"0" * 19
"""The fewest characters of an integer beyond 64 bits, and of a fraction with 18 significant digits."""
_TINY = b"e-000"
_ROUNDED = re.compile(rb"[\[:,\s]-?(?:(?:0\.0*)?[1-9](?:\.?[0-9]){17}|[0-9.]+[eE]-[0-9]{3})")
"""Numbers that orjson can round, and some that it cannot. Can also match inside strings, which is harmless."""


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
    # orjson rounds numbers that a double cannot hold. The check takes 0.3 µs for a usual chunk, 1 % of its cost.
    zeros = data.translate(_ZEROS)
    if (_MANY_DIGITS in zeros or _TINY in zeros) and _ROUNDED.search(data):
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
        return _lenient.decode(text) if len(data) < _LARGE_CHARACTERS else json_cursor.loads(text, _lenient.raw_decode)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def loads_exactly(text: str) -> Any:
    """Return the value of a caller's JSON: no NaN, and all numbers stay as written. Raises ValueError."""
    try:
        if len(text) < _LARGE_CHARACTERS:
            return _caller.decode(text)
        count_values(text.encode(), MAX_CALLER_VALUES)
        return json_cursor.loads(text, _caller.raw_decode)
    except RecursionError:
        raise ValueError("nested too deeply") from None


_lenient = json.JSONDecoder(parse_float=read_fraction, strict=False)
"""Accepts control characters in strings, such as raw line breaks."""


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
    elif isinstance(value, WrittenNumber):
        pieces.append(value.text)
    elif isinstance(value, float) and value - value != 0:  # NaN and the infinities
        pieces.append("null")
    else:
        pieces.append(json.dumps(value))


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


_caller = json.JSONDecoder(parse_constant=_reject_constant, parse_float=read_fraction)
