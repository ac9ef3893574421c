"""Halves of UTF-16 pairs in JSON text: servers that cut a string between the halves of an emoji escape each on its own.

A protobuf string cannot hold a lone half. Within one stream the halves meet again: a high one that ends a delta waits
for the low one that begins the next delta of the same text. One that stays alone becomes U+FFFD.
"""

from typing import Any

from chatrpc_server.core.text import well_formed

_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
_HEAD = ("id", "object", "created", "model")
_LOST = "\ufffd"
_Place = tuple[str, str, str, str]
"""The choice, what of its delta, the tool call, and the key of the text."""


class SurrogateJoiner:
    """Carries the high halves of one stream from delta to delta."""

    def __init__(self) -> None:
        self._waiting: dict[_Place, tuple[str, Any, Any]] = {}
        """With each half the indexes of its choice and of its tool call, as sent."""
        self._head: dict[str, Any] = {}

    @property
    def waiting(self) -> bool:
        """Is a half still without its other one?"""
        return bool(self._waiting)

    def join(self, chunk: dict[str, Any]) -> None:
        """Mends the texts of a chunk's deltas in place."""
        self._head = {key: chunk[key] for key in _HEAD if key in chunk}
        for choice in _objects(chunk.get("choices")):
            index = choice.get("index")
            delta = _object(choice.get("delta"))
            self._join(delta, index, "", _TEXTS)
            for part in _objects(delta.get("content")):
                self._join(part, index, "content", ("text",))
            self._join(_object(delta.get("function_call")), index, "function_call", ("arguments",))
            self._join(_object(delta.get("audio")), index, "audio", ("transcript",))
            for call in _objects(delta.get("tool_calls")):
                self._join(_object(call.get("function")), index, "function", ("arguments",), call.get("index"))
                self._join(_object(call.get("custom")), index, "custom", ("input",), call.get("index"))
            if choice.get("finish_reason"):  # nothing follows in this choice
                self._give_up(choice)

    def rest(self) -> dict[str, Any] | None:
        """At the end of the stream: a chunk with what still waits, if anything does."""
        choices: dict[str, dict[str, Any]] = {place[0]: {"index": at[1]} for place, at in self._waiting.items()}
        for choice in choices.values():
            self._give_up(choice)
        return {**self._head, "choices": list(choices.values())} if choices else None

    def _join(self, source: dict[str, Any], index: Any, kind: str, keys: tuple[str, ...], call: Any = None) -> None:
        for key in keys:
            text = source.get(key)
            if not isinstance(text, str) or not text:
                continue
            place = (repr(index), kind, repr(call), key)  # whatever the indexes are
            text = self._waiting.pop(place, ("",))[0] + text
            if "\ud800" <= text[-1] <= "\udbff":
                self._waiting[place] = text[-1], index, call
                text = text[:-1]
            source[key] = well_formed(text)

    def _give_up(self, choice: dict[str, Any]) -> None:
        """What waits in this choice stays alone: the choice's delta says so, at the same places."""
        index = repr(choice.get("index"))
        for place, (_, _, call) in list(self._waiting.items()):
            if place[0] == index:
                del self._waiting[place]
                choice["delta"] = _object(choice.get("delta"))
                _append_lost(choice["delta"], place, call)


def _append_lost(delta: dict[str, Any], place: _Place, call: Any) -> None:
    _, kind, _, key = place
    if kind in ("function", "custom"):
        calls = delta.get("tool_calls")
        delta["tool_calls"] = [*(calls if isinstance(calls, list) else ()), {"index": call, kind: {key: _LOST}}]
    elif kind == "content" and isinstance(delta.get("content"), list):
        delta["content"].append({"type": "text", "text": _LOST})
    else:
        holder = delta
        if kind in ("function_call", "audio"):
            holder = delta[kind] = _object(delta.get(kind))
        key = "content" if kind == "content" else key
        text = holder.get(key)
        holder[key] = (text if isinstance(text, str) else "") + _LOST


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
