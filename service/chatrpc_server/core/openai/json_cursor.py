"""Parses large JSON in pieces, so that other threads run meanwhile.

A parser in C holds the interpreter's lock until the whole text is parsed: 20 MiB of token probabilities stop the event
loop for 0.4 s, although another thread parses them. Here large objects and arrays are parsed in Python, and only the
small values in them in C. Other threads get the lock between two values.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from chatrpc_server.core.openai.exact_numbers import read_fraction

_skip_blanks = re.compile(r"[ \t\n\r]*").match
_SMALL_CHARACTERS = 2048
"""Longest object or array that is parsed in C. A larger one takes longer than other threads can wait."""

MAX_VALUES = 1_000_000
"""Most values that are in memory at once. The objects of more would take 50 ms to free, in one step."""

Decode = Callable[[str, int], tuple[Any, int]]
"""`json.JSONDecoder.raw_decode`: returns the value at an offset, and the offset after it."""
_decode = json.JSONDecoder(parse_float=read_fraction, strict=False).raw_decode


class TooManyValues(ValueError):
    """JSON whose values would take much more memory than its text."""


class Cursor:
    """A position in JSON text. All methods raise ValueError if the text is invalid, `TooManyValues` if it is dense."""

    __slots__ = ("_decode", "_tried_to", "at", "text", "values")

    def __init__(self, text: str, decode: Decode = _decode) -> None:
        self.text = text
        self.at = 0
        self.values = 0
        """Commas and opening brackets read so far. Subtract those of values that are no longer in memory."""
        self._decode = decode
        self._tried_to = 0
        """Offset up to which a try to parse in C has failed. A second try there could repeat for each level."""

    def peek(self) -> str:
        """Return the next character that is not blank; empty at the end."""
        character = self.text[self.at : self.at + 1]
        if character <= " ":
            self.at = _skip_blanks(self.text, self.at).end()  # type: ignore[union-attr]  # it matches always
            return self.text[self.at : self.at + 1]
        return character

    def value(self) -> Any:
        """Return the next value. If it is large, it is parsed in Python, and only small values in it in C."""
        kind = self.peek()
        if kind not in ("{", "["):
            value, self.at = self._decode(self.text, self.at)
            return value
        if self.at >= self._tried_to:
            part = self.text[self.at : self.at + _SMALL_CHARACTERS]
            try:
                # A part that is an object or array is the whole of it, because its last bracket is in the part.
                value, size = self._decode(part, 0)
            except ValueError:
                self._tried_to = self.at + _SMALL_CHARACTERS
            else:
                self.at += size
                self._count(part.count(",", 0, size) + part.count("[", 0, size) + part.count("{", 0, size))
                return value
        # Loops, because before Python 3.12 a comprehension halves the nesting that the stack allows.
        if kind == "{":
            members = {}
            for key in self.members():
                members[key] = self.value()
            return members
        elements = []
        for _ in self.elements():
            elements.append(self.value())
        return elements

    def members(self) -> Iterator[str]:
        """Yield the keys of the object that follows. Read the value of each key before the next one."""
        self.at += 1
        self._count(1)
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            if self.peek() != '"':
                raise ValueError("a key of an object is not a string")
            key, self.at = self._decode(self.text, self.at)
            self._expect(":")
            yield key
            if self._expect(",}") == "}":
                return
            self._count(1)

    def elements(self) -> Iterator[None]:
        """Yield for each element of the array that follows. Read the element before the next one."""
        self.at += 1
        self._count(1)
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield
            if self._expect(",]") == "]":
                return
            self._count(1)

    def end(self) -> None:
        """Raise ValueError if more than blanks follow."""
        if self.peek():
            raise ValueError("text follows the value")

    def _count(self, values: int) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            raise TooManyValues(f"it has more than {MAX_VALUES} values besides token probabilities")

    def _expect(self, characters: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            raise ValueError(f"one of {characters} is missing at character {self.at}")
        self.at += 1
        return found


def loads(text: str, decode: Decode) -> Any:
    """Return the value of a large text. Raises ValueError, and RecursionError if it is nested too deeply."""
    cursor = Cursor(text, decode)
    value = cursor.value()
    cursor.end()
    return value
