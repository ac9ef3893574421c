"""JSON text to values and back: fast for what is well-formed, lenient for what servers really send.

orjson refuses NaN, lone surrogates (`"\\ud83d"`), invalid UTF-8 and integers past 64 bits when it writes. Each of these
has been seen from real providers, so whatever it refuses may get a second chance with the standard library.
"""

import json
import re
from typing import Any

import orjson

_ZEROS = bytes.maketrans(b"0123456789", b"0000000000")
"""For `bytes.translate`: all digits become one, which finds many in a row 8 times as fast as a regular expression."""
_MANY_DIGITS = b"0" * 19
_LONG_INTEGER = re.compile(rb"[\[:,\s]-?[0-9]{19,}\s*[,\]}]")
"""Outside of strings, of which it may find a few too; it takes 19 digits to get past 64 bits."""


def loads(data: bytes) -> Any:
    """The value of well-formed JSON. Raises ValueError."""
    value = orjson.loads(data)
    # Integers past 64 bits have become doubles. Looking for them takes 0.3 µs for a usual chunk, 1 % of what it costs.
    if _MANY_DIGITS in data.translate(_ZEROS) and _LONG_INTEGER.search(data):
        return loads_leniently(data)
    return value


def text(data: bytes) -> str:
    """The text that stands between two quotation marks. Raises ValueError if these bytes cannot."""
    value: str = orjson.loads(b'"%b"' % data)
    return value


def loads_leniently(data: bytes) -> Any:
    """The value of JSON as servers really write it. Raises ValueError if it is not JSON even with good will."""
    try:
        return json.loads(data.decode("utf-8-sig", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def loads_exactly(text: str) -> Any:
    """The value of what a caller wrote: no NaN, and integers of any size stay integers. Raises ValueError."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class Raw:
    """JSON text, known to be valid, that `dumps` splices in byte by byte."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def dumps(value: Any) -> bytes:
    """Compact JSON, with null for NaN and the infinities. Values of type `Raw` may stand anywhere inside.

    Raises ValueError for what is nested too deeply.
    """
    try:
        return orjson.dumps(value, default=lambda item: orjson.Fragment(item.text))
    except TypeError:
        pass
    try:
        text = _dumps_anything(value)
        if "NaN" in text or "Infinity" in text:  # perhaps as a number, which would not be JSON
            text = _dumps_anything(json.loads(text, parse_constant=lambda _: None))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return text.encode("ascii")


def _dumps_anything(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), default=lambda item: json.loads(item.text))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _finite_float(text: str) -> float:
    value = float(text)
    if value - value != 0:  # an infinity
        raise ValueError("a number is beyond the range of a double")
    return value
