"""Normalisation of stream chunks: the dialects of all providers become OpenAI's, before chunks are mapped to messages.

Rules 2 and 5 of protos/chatrpc/v1/chat_service.proto: every tool call has an index of its own, and usage is in `usage`.
"""

from typing import Any

from chatrpc_server.core.openai import limits, mapping

_MAX_ID_CHARACTERS = 256
"""Characters of a tool call's id that are remembered. Longer ids are remembered by their hash."""


class ChunkNormaliser:
    """The state of one stream that normalisation needs: the tool calls of each choice."""

    def __init__(self) -> None:
        self._tool_calls: dict[int, ToolCallNumbering] = {}
        self._remembered = 0
        """The number of tool calls of all choices, as `ToolCallNumbering.remembered` counts them."""

    def normalise(self, chunk: dict[str, Any]) -> None:
        """Normalise a JSON chunk in place. Raises `InvalidResponse` if there are too many choices or tool calls."""
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            choices = []
        elif len(choices) > 1:
            limits.check("choices", len(choices), limits.MAX_CHOICES)
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            if "delta" not in choice and isinstance(choice.get("message"), dict):
                choice["delta"] = choice.pop("message")
            delta = choice.get("delta")
            if isinstance(delta, dict) and isinstance(delta.get("tool_calls"), list):
                index = mapping.to_integer(choice.get("index")) or 0
                self._number(index, delta["tool_calls"])
        if chunk.get("usage") is None:
            usage = _find_usage(chunk, choices)
            if usage is not None:
                chunk["usage"] = usage

    def _number(self, choice: int, calls: list[Any]) -> None:
        if len(calls) > 1:
            limits.check("tool calls", len(calls), limits.MAX_TOOL_CALLS)
        numbering = self._tool_calls.get(choice)
        if numbering is None:
            numbering = self._tool_calls[choice] = ToolCallNumbering()
            limits.check("choices", len(self._tool_calls), limits.MAX_CHOICES)
        before = numbering.remembered
        if numbering.number(calls):
            self._remembered += numbering.remembered - before
            limits.check("tool calls", self._remembered, limits.MAX_TOOL_CALLS)


class ToolCallNumbering:
    """Unique indexes for the tool calls of one choice; without them parallel calls would merge.

    The upstream's index is valid unless it is missing or the same for all calls. Then the ids distinguish the calls.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int | None, str], int] = {}
        """Index by the upstream's index and id. An empty id stands for the latest call with that upstream index."""
        self._indexes: set[int] = set()
        self._with_id: set[int] = set()
        """Indexes of the calls whose id is known."""
        self._last = -1
        self.remembered = 0
        """The number of calls, or a third of the known ids if that is more. A usual call has three entries."""

    def number(self, calls: list[Any]) -> bool:
        """Set `index` in the deltas of tool calls. Return whether there is more to remember."""
        before = len(self._indexes) + len(self._known)
        for position, call in enumerate(calls):
            if not isinstance(call, dict):
                continue
            identity = call.get("id")
            if not isinstance(identity, str):
                identity = ""
            elif len(identity) > _MAX_ID_CHARACTERS:
                identity = f"hash {hash(identity)}"
            upstream_index = _to_index(call.get("index"))
            if upstream_index is None:
                # A delta without id and name continues the call at its position; a single delta continues the last.
                index = self._index_by_id(call, identity, position if len(calls) > 1 else max(self._last, 0))
            else:
                index = self._index_by_upstream(upstream_index, call, identity)
                self._known[upstream_index, identity] = self._known[upstream_index, ""] = index
            call["index"] = index
            self._indexes.add(index)
            if identity:
                self._known.setdefault((None, identity), index)
                self._with_id.add(index)
            self._last = max(self._last, index)
        if len(self._indexes) + len(self._known) == before:
            return False
        self.remembered = max(len(self._indexes), len(self._known) // 3)
        return True

    def _index_by_id(self, call: dict[str, Any], identity: str, default: int) -> int:
        if identity and (None, identity) in self._known:
            return self._known[None, identity]
        return self._last + 1 if identity or _has_name(call) else default

    def _index_by_upstream(self, upstream_index: int, call: dict[str, Any], identity: str) -> int:
        if (upstream_index, identity) in self._known:
            return self._known[upstream_index, identity]
        index = self._known.get((upstream_index, ""), upstream_index)
        # Ollama sends index 0 for all calls. A new id without a name is no new call, because Poolside changes the id
        # of a call.
        has_new_id = identity and index in self._with_id and self._known.get((None, identity)) != index
        return self._last + 1 if has_new_id and _has_name(call) else index


def _to_index(value: Any) -> int | None:
    if isinstance(value, str) and len(value) < 10 and value.isdecimal():
        return int(value)
    return mapping.to_integer(value)


def _has_name(call: dict[str, Any]) -> bool:
    return any(isinstance(holder, dict) and holder.get("name") for holder in (call.get("function"), call.get("custom")))


def _find_usage(chunk: dict[str, Any], choices: list[Any]) -> dict[str, Any] | None:
    """Return the usage in the first choice (Moonshot) or in `x_groq` (Groq), which also stays there as an extra."""
    holders = [choices[0]] if choices else []
    holders.append(chunk.get("x_groq"))
    for holder in holders:
        if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
            usage: dict[str, Any] = holder["usage"]
            return usage
    return None
