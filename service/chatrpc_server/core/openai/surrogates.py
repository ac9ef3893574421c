"""Joins surrogates: some servers split an emoji between two deltas and escape each half of its UTF-16 pair.

A protobuf string cannot hold a lone surrogate. So a high surrogate at the end of a delta is held until the next delta
of the same text, which can begin with the low one. A surrogate without its other half becomes U+FFFD.
"""

from typing import Any

from chatrpc_server.core.openai import TEXT_FIELDS, limits
from chatrpc_server.core.text import well_formed

_HEAD = ("id", "object", "created", "model")
_REPLACEMENT = "\ufffd"
_Place = tuple[str, str, str]
"""The part of a choice's delta, the tool call, and the key of the text."""
_MAX_INDEX_CHARACTERS = 64


class SurrogateJoiner:
    """The waiting high surrogates of one stream."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Any, dict[_Place, tuple[str, Any]]]] = {}
        """By choice: its index as the upstream sent it; and by place: the surrogate, and the index of its tool call."""
        self._head: dict[str, Any] = {}

    @property
    def waiting(self) -> bool:
        """Whether a high surrogate waits for its low one."""
        return bool(self._waiting)

    def join(self, chunk: dict[str, Any]) -> None:
        """Join the texts of a chunk's deltas in place."""
        self._head = {key: chunk[key] for key in _HEAD if key in chunk}
        for choice in _objects(chunk.get("choices")):
            index = _index(choice)
            delta = _object(choice.get("delta"))
            self._join(delta, index, "", TEXT_FIELDS)
            for part in _objects(delta.get("content")):
                self._join(part, index, "content", ("text",))
            self._join(_object(delta.get("function_call")), index, "function_call", ("arguments",))
            self._join(_object(delta.get("audio")), index, "audio", ("transcript",))
            for call in _objects(delta.get("tool_calls")):
                self._join(_object(call.get("function")), index, "function", ("arguments",), _index(call))
                self._join(_object(call.get("custom")), index, "custom", ("input",), _index(call))
            if choice.get("finish_reason"):  # nothing follows in this choice
                self._flush(repr(index), choice)

    def flush(self) -> dict[str, Any] | None:
        """Return a chunk with the surrogates that still wait at the end of the stream, or None if none waits."""
        choices = {key: {"index": index} for key, (index, _) in self._waiting.items()}
        for key, choice in choices.items():
            self._flush(key, choice)
        return {**self._head, "choices": list(choices.values())} if choices else None

    def _join(self, source: dict[str, Any], index: Any, kind: str, keys: tuple[str, ...], call: Any = None) -> None:
        for key in keys:
            text = source.get(key)
            if not isinstance(text, str) or not text:
                continue
            choice, place = repr(index), (kind, repr(call), key)  # the indexes can be of any type
            _, waiting = self._waiting.get(choice, (None, {}))
            text = waiting.pop(place, ("",))[0] + text
            if "\ud800" <= text[-1] <= "\udbff":
                waiting[place] = text[-1], call
                text = text[:-1]
            source[key] = well_formed(text)
            if waiting:
                self._waiting[choice] = index, waiting
                limits.check("tool calls", len(waiting), 2 * limits.MAX_TOOL_CALLS)
                limits.check("choices", len(self._waiting), limits.MAX_CHOICES)
            else:
                self._waiting.pop(choice, None)

    def _flush(self, key: str, choice: dict[str, Any]) -> None:
        """Append U+FFFD to the choice's delta for each waiting surrogate of this choice, at the surrogate's place."""
        _, waiting = self._waiting.pop(key, (None, {}))
        for place, (_, call) in waiting.items():
            choice["delta"] = _object(choice.get("delta"))
            _append_replacement(choice["delta"], place, call)


def _index(source: dict[str, Any]) -> Any:
    """Return the index of a choice or tool call, or None if it is too long to be remembered."""
    index = source.get("index")
    if index is None or isinstance(index, int):
        return index
    return index if isinstance(index, str) and len(index) <= _MAX_INDEX_CHARACTERS else None


def _append_replacement(delta: dict[str, Any], place: _Place, call: Any) -> None:
    kind, _, key = place
    if kind in ("function", "custom"):
        calls = delta.get("tool_calls")
        if not isinstance(calls, list):
            calls = delta["tool_calls"] = []
        calls.append({"index": call, kind: {key: _REPLACEMENT}})
    elif kind == "content" and isinstance(delta.get("content"), list):
        delta["content"].append({"type": "text", "text": _REPLACEMENT})
    else:
        holder = delta
        if kind in ("function_call", "audio"):
            holder = delta[kind] = _object(delta.get(kind))
        key = "content" if kind == "content" else key
        text = holder.get(key)
        holder[key] = (text if isinstance(text, str) else "") + _REPLACEMENT


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
