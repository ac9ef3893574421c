"""Parses large JSON in pieces, so that other threads run meanwhile.

A parser in C holds the interpreter's lock until the whole text is parsed: 20 MiB of token probabilities stop the event
loop for 0.4 s, although another thread parses them. Here large objects and arrays are parsed in Python, and only the
small values in them in C. Other threads get the lock between two values.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

_skip_blanks = re.compile(r"[ \t\n\r]*").match
_OUTER_LEVELS = 5
"""Nesting levels that can be parsed in Python. Level 5 has the content parts of messages, and token probabilities."""
_SMALL_CHARACTERS = 2048
"""Longest object or array that is always parsed in C."""

Decode = Callable[[str, int], tuple[Any, int]]
"""`json.JSONDecoder.raw_decode`: returns the value at an offset, and the offset after it."""
_decode = json.JSONDecoder().raw_decode


class Cursor:
    """A position in JSON text. All methods raise ValueError if the text is invalid."""

    __slots__ = ("_decode", "at", "text")

    def __init__(self, text: str, decode: Decode = _decode) -> None:
        self.text = text
        self.at = 0
        self._decode = decode

    def peek(self) -> str:
        """Return the next character that is not blank; empty at the end."""
        character = self.text[self.at : self.at + 1]
        if character <= " ":
            self.at = _skip_blanks(self.text, self.at).end()  # type: ignore[union-attr]  # it matches always
            return self.text[self.at : self.at + 1]
        return character

    def value(self, levels: int = 0) -> Any:
        """Return the next value. If it is large, that many outer levels of it are parsed in Python."""
        kind = self.peek()
        if not levels or kind not in ("{", "["):
            value, self.at = self._decode(self.text, self.at)
            return value
        try:
            # A part that is an object or array is the whole of it, because its last bracket is in the part.
            value, size = self._decode(self.text[self.at : self.at + _SMALL_CHARACTERS], 0)
        except ValueError:
            if kind == "{":
                return {key: self.value(levels - 1) for key in self.members()}
            return [self.value(levels - 1) for _ in self.elements()]
        self.at += size
        return value

    def members(self) -> Iterator[str]:
        """Yield the keys of the object that follows. Read the value of each key before the next one."""
        self.at += 1
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

    def elements(self) -> Iterator[None]:
        """Yield for each element of the array that follows. Read the element before the next one."""
        self.at += 1
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield
            if self._expect(",]") == "]":
                return

    def end(self) -> None:
        """Raise ValueError if more than blanks follow."""
        if self.peek():
            raise ValueError("text follows the value")

    def _expect(self, characters: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            raise ValueError(f"one of {characters} is missing at character {self.at}")
        self.at += 1
        return found


def loads(text: str, decode: Decode) -> Any:
    """Return the value of a large text. Raises ValueError, and RecursionError if it is nested too deeply."""
    cursor = Cursor(text, decode)
    value = cursor.value(_OUTER_LEVELS)
    cursor.end()
    return value
