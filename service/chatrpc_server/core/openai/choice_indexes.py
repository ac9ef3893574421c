"""Unique indexes for choices: without them, the texts of several choices would merge."""

from itertools import count
from typing import Any

from chatrpc_server.core.openai import limits, mapping

_MAX_CHARACTERS = 64
"""Characters of an unusable index that are remembered."""
END = 1 << 31
"""The first integer that is no index."""


def to_index(value: Any) -> int | None:
    """Return the index that a JSON number or digits in a string stand for, or None."""
    if isinstance(value, str) and len(value) < 10 and value.isdecimal():
        return int(value)
    return mapping.to_integer(value)


class ChoiceNumbering:
    """The indexes of one response's choices.

    The upstream's index is valid if it is an integer of 31 bits. Other values identify a choice: it gets its position,
    or the next free number if that is taken. A choice without any value gets its position in each event.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        """Index by the upstream's value."""

    def number(self, choices: list[Any]) -> None:
        """Set `index` in each choice."""
        for choice in choices:
            if isinstance(choice, dict):
                index = to_index(choice.get("index"))
                if _is_valid(index):
                    choice["index"] = index
        taken = {choice["index"] for choice in choices if isinstance(choice, dict) and _is_valid(choice.get("index"))}
        for position, choice in enumerate(choices):
            if not isinstance(choice, dict) or _is_valid(choice.get("index")):
                continue
            value = choice.get("index")
            identity = None if value is None or isinstance(value, dict | list) else f"{value!r:.{_MAX_CHARACTERS}}"
            index = self._known.get(identity) if identity is not None else None
            if index is None:
                others = taken if identity is None else taken.union(self._known.values())
                index = position if position not in others else next(n for n in count() if n not in others)
                if identity is not None:
                    self._known[identity] = index
                    limits.check("choices", len(self._known), limits.MAX_CHOICES)
            choice["index"] = index
            taken.add(index)


def _is_valid(value: Any) -> bool:
    return type(value) is int and 0 <= value < END
