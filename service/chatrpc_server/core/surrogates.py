"""Halves of UTF-16 pairs in JSON text: servers that cut a string between the halves of an emoji escape each on its own.

A protobuf string cannot hold a lone half. Within one stream the halves meet again: a high one that ends a delta waits
for the low one that begins the next delta of the same text. One that stays alone becomes U+FFFD.
"""

from typing import Any

_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


def well_formed(text: str) -> str:
    """The text with pairs joined and lone halves replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class SurrogateJoiner:
    """Carries the high halves of one stream from delta to delta."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, ...], str] = {}

    @property
    def waiting(self) -> bool:
        """Is a half still without its other one?"""
        return bool(self._waiting)

    def join(self, chunk: dict[str, Any]) -> None:
        """Mends the texts of a chunk's deltas in place."""
        for choice in _objects(chunk.get("choices")):
            index = repr(choice.get("index"))  # whatever it is
            delta = _object(choice.get("delta"))
            self._join(delta, (index,), *_TEXTS)
            for part in _objects(delta.get("content")):
                self._join(part, (index, "part"), "text")
            self._join(_object(delta.get("function_call")), (index, "function_call"), "arguments")
            self._join(_object(delta.get("audio")), (index, "audio"), "transcript")
            for call in _objects(delta.get("tool_calls")):
                place = (index, repr(call.get("index")))
                self._join(_object(call.get("function")), place, "arguments")
                self._join(_object(call.get("custom")), place, "input")
            if choice.get("finish_reason"):
                self._give_up(choice, index)

    def _join(self, source: dict[str, Any], place: tuple[str, ...], *keys: str) -> None:
        for key in keys:
            text = source.get(key)
            if not isinstance(text, str) or not text:
                continue
            text = self._waiting.pop((*place, key), "") + text
            if "\ud800" <= text[-1] <= "\udbff":
                self._waiting[*place, key] = text[-1]
                text = text[:-1]
            source[key] = well_formed(text)

    def _give_up(self, choice: dict[str, Any], index: str) -> None:
        """Nothing follows in this choice: what waits for its other half stays alone."""
        for key in _TEXTS:
            if self._waiting.pop((index, key), ""):
                delta = choice["delta"] = _object(choice.get("delta"))
                text = delta.get(key)
                delta[key] = (text if isinstance(text, str) else "") + "\ufffd"


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
