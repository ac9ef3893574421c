"""Parses large JSON of responses with many values, such as the probabilities of 160,000 tokens.

Token probabilities become parts of messages at once, because a tree of them takes ten times the memory of the text.
All other values become the usual objects of Python.
"""

from typing import Any

from chatrpc.v1.chat_response_pb2 import Logprobs
from chatrpc_server.core.openai import jsontext, mapping
from chatrpc_server.core.openai.json_cursor import Cursor

_MANY_VALUES = 20_000
"""Values below which a parser in C takes less than 10 ms."""
_PIECE_ELEMENTS = 2000
_OUTER_LEVELS = 4


def is_large(data: bytes) -> bool:
    """Return whether to parse JSON with `loads`. Raises `jsontext.TooManyValues`."""
    return len(data) > _MANY_VALUES and jsontext.count_values(data) > _MANY_VALUES


def loads(data: bytes) -> Any:
    """Return the value of large JSON, with `mapping.Pieces` for the `logprobs` of choices. Raises ValueError."""
    cursor = Cursor(data.decode("utf-8-sig", "replace"))
    try:
        value: Any
        if cursor.peek() == "{":
            value = {
                key: _choices(cursor) if key == "choices" and cursor.peek() == "[" else cursor.value(_OUTER_LEVELS)
                for key in cursor.members()
            }
        else:
            value = cursor.value(_OUTER_LEVELS)
        cursor.end()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _choices(cursor: Cursor) -> list[Any]:
    begin, choices = cursor.at, []
    for _ in cursor.elements():
        if cursor.peek() != "{":  # the list becomes an extra, which cannot hold pieces
            cursor.at = begin
            return list(cursor.value(_OUTER_LEVELS))
        choices.append(
            {
                key: _logprobs(cursor) if key == "logprobs" and cursor.peek() == "{" else cursor.value(_OUTER_LEVELS)
                for key in cursor.members()
            }
        )
    return choices


def _logprobs(cursor: Cursor) -> "mapping.Pieces | dict[str, Any]":
    begin = cursor.at
    lists: dict[str, list[bytes]] = {}
    others: dict[str, Any] = {}
    for key in cursor.members():
        if key not in ("content", "refusal") or cursor.peek() != "[":
            others[key] = cursor.value(_OUTER_LEVELS)
            continue
        lists[key] = []
        elements: list[Any] = []
        for _ in cursor.elements():
            if cursor.peek() != "{":  # the list becomes an extra
                cursor.at = begin
                return dict(cursor.value(_OUTER_LEVELS))
            elements.append(cursor.value())
            if len(elements) == _PIECE_ELEMENTS:
                lists[key].append(_piece({key: elements}))
                elements = []
        lists[key].append(_piece({key: elements}))
    return mapping.Pieces([*(piece for pieces in lists.values() for piece in pieces), _piece(others)])


def _piece(source: dict[str, Any]) -> bytes:
    message = Logprobs()
    mapping.read(message, source)
    return message.SerializeToString()
