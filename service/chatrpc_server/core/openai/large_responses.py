"""Parses large JSON of responses with many values, such as the probabilities of 160,000 tokens.

Token probabilities become parts of messages at once, because a tree of them takes ten times the memory of the text.
All other values become the usual objects of Python, and are limited to `json_cursor.MAX_VALUES`.
"""

from typing import Any

from chatrpc.v1.chat_response_pb2 import Logprobs
from chatrpc_server.core.openai import jsontext, limits, mapping
from chatrpc_server.core.openai.json_cursor import Cursor
from chatrpc_server.core.text import decode_utf8

_MANY_VALUES = 20_000
"""Values below which a parser in C takes less than 10 ms."""
_PIECE_ELEMENTS = 2000
_PIECE_VALUES = 50_000
"""The most of both that are objects of Python at once; a single token can have more values."""


def is_large(data: bytes) -> bool:
    """Return whether to parse JSON with `loads`. Raises `jsontext.TooManyValues`."""
    return len(data) > _MANY_VALUES and jsontext.count_values(data) > _MANY_VALUES


def loads(data: bytes) -> Any:
    """Return the value of large JSON, with `mapping.Pieces` for the `logprobs` of choices. Raises ValueError."""
    cursor = Cursor(decode_utf8(data))
    try:
        value: Any
        if cursor.peek() == "{":
            value = {
                key: _choices(cursor) if key == "choices" and cursor.peek() == "[" else cursor.value()
                for key in cursor.members()
            }
        else:
            value = cursor.value()
        cursor.end()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _choices(cursor: Cursor) -> list[Any]:
    begin, values, choices = cursor.at, cursor.values, []
    for _ in cursor.elements():
        if cursor.peek() != "{":  # the list becomes an extra, which cannot hold pieces
            cursor.at, cursor.values = begin, values
            return list(cursor.value())
        choices.append(
            {
                key: _logprobs(cursor) if key == "logprobs" and cursor.peek() == "{" else cursor.value()
                for key in cursor.members()
            }
        )
    return choices


def _logprobs(cursor: Cursor) -> "mapping.Pieces | dict[str, Any]":
    begin, values = cursor.at, cursor.values
    lists: dict[str, list[bytes]] = {}
    others: dict[str, Any] = {}
    tokens = 0
    for key in cursor.members():
        if key not in ("content", "refusal") or cursor.peek() != "[":
            others[key] = cursor.value()
            continue
        lists[key] = []
        elements: list[Any] = []
        before = cursor.values
        for _ in cursor.elements():
            tokens += 1
            limits.check("token probabilities", tokens, limits.MAX_TOKENS)
            if cursor.peek() != "{":  # the list becomes an extra
                cursor.at, cursor.values = begin, values
                return dict(cursor.value())
            elements.append(cursor.value())
            if len(elements) == _PIECE_ELEMENTS or cursor.values - before >= _PIECE_VALUES:
                lists[key].append(_piece({key: elements}))
                elements, cursor.values = [], before
        lists[key].append(_piece({key: elements}))
        cursor.values = before
    return mapping.Pieces([*(piece for pieces in lists.values() for piece in pieces), _piece(others)])


def _piece(source: dict[str, Any]) -> bytes:
    message = Logprobs()
    mapping.read(message, source)
    return message.SerializeToString()
