"""Normalisation of stream chunks: the dialects of all providers become OpenAI's, before chunks are mapped to messages.

Rules 2, 5 and 11 of protos/chatrpc/v1/chat_service.proto: every choice and tool call has an index of its own, usage is
in `usage`, and nothing is repeated.
"""

from collections.abc import Iterable
from typing import Any

from chatrpc_server.core.openai import TEXT_FIELDS, limits
from chatrpc_server.core.openai.choice_indexes import END, ChoiceNumbering, to_index
from chatrpc_server.core.openai.snapshots import MessageSoFar, calls_of

_APPENDED = (*TEXT_FIELDS, "tool_calls", "function_call")
"""Keys of a whole message whose new part is appended to the delta beside it. The message stays an extra."""
_NO_REASON = (None, "", "null", "None")
"""Values of `finish_reason` in chunks that do not finish a choice."""
_MAX_ID_CHARACTERS = 256
"""Characters of a tool call's id that are remembered. Longer ids are remembered by their hash."""


class ChunkNormaliser:
    """The state of one stream that normalisation needs: the message and the tool calls of each choice."""

    def __init__(self) -> None:
        self._choices = ChoiceNumbering()
        self._messages: dict[int, MessageSoFar] = {}
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
            if isinstance(choice, dict):
                index = choice.get("index")
                if type(index) is not int or not 0 <= index < END:
                    self._choices.number(choices)
                self._read_choice(choice)
        if chunk.get("usage") is None:
            usage = _find_usage(chunk, choices)
            if usage is not None:
                chunk["usage"] = usage

    def add_text(self, choice: int, length: int, end: str) -> None:
        """Add content that passed without normalisation: its length, and its last characters."""
        self._message(choice).texts["content"].add_unseen(length, end)

    def _message(self, choice: int) -> MessageSoFar:
        if choice not in self._messages:
            self._messages[choice] = MessageSoFar()
            limits.check("choices", len(self._messages), limits.MAX_CHOICES)
        return self._messages[choice]

    def _read_choice(self, choice: dict[str, Any]) -> None:
        index, delta, message = choice["index"], choice.get("delta"), choice.get("message")
        so_far = self._messages.get(index) or self._message(index)
        if isinstance(delta, dict):
            if isinstance(delta.get("tool_calls"), list):
                self._number(index, delta["tool_calls"])
            if so_far.has_finished or choice.get("finish_reason") not in _NO_REASON:
                so_far.finish(delta)
            if so_far.add(delta):
                so_far.has_deltas = True
            if isinstance(message, dict):
                message = _copy(message)
                self._number_whole(index, message)
                _append(delta, so_far.read_snapshot(message), _APPENDED)
        elif delta is None and isinstance(message, dict):
            del choice["message"]
            self._number_whole(index, message)
            choice["delta"] = so_far.read_message(message)

    def _number_whole(self, choice: int, message: dict[str, Any]) -> None:
        """Number the tool calls of a message that can repeat earlier ones, which their id or position identifies."""
        calls, new = calls_of(message), []
        if not calls:
            return
        numbering, so_far = self._numbering(choice), self._message(choice)
        for position, call in enumerate(calls):
            if isinstance(call, dict):
                index = numbering.find(call.get("id"))
                if index is None:
                    index = so_far.find_call(position, call)
                if index is None:
                    new.append(call)
                else:
                    call["index"] = index
        self._number(choice, new)

    def _numbering(self, choice: int) -> "ToolCallNumbering":
        numbering = self._tool_calls.get(choice)
        if numbering is None:
            numbering = self._tool_calls[choice] = ToolCallNumbering()
        return numbering

    def _number(self, choice: int, calls: list[Any]) -> None:
        if len(calls) > 1:
            limits.check("tool calls", len(calls), limits.MAX_TOOL_CALLS)
        numbering = self._numbering(choice)
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

    def find(self, identity: Any) -> int | None:
        """Return the index of the call with an id, or None."""
        return self._known.get((None, _to_identity(identity))) if identity else None

    def number(self, calls: list[Any]) -> bool:
        """Set `index` in the deltas of tool calls. Return whether there is more to remember."""
        before = len(self._indexes) + len(self._known)
        for position, call in enumerate(calls):
            if not isinstance(call, dict):
                continue
            identity = _to_identity(call.get("id"))
            upstream_index = to_index(call.get("index"))
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


def _to_identity(value: Any) -> str:
    """Return a tool call's id, as it is remembered; empty if it has none."""
    if not isinstance(value, str):
        return ""
    return value if len(value) <= _MAX_ID_CHARACTERS else f"hash {hash(value)}"


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


def _append(delta: dict[str, Any], new: dict[str, Any], keys: Iterable[str]) -> None:
    """Append the new part of a whole message to the delta beside it."""
    for key in keys:
        value, before = new.get(key), delta.get(key)
        if value and not before:
            delta[key] = value
        elif isinstance(value, dict) and isinstance(before, dict):
            _append(before, value, value)
        elif isinstance(value, str | list) and type(value) is type(before):
            delta[key] += value


def _copy(message: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a message that stays an extra, as deep as normalisation changes it."""
    copy = dict(message)
    if calls_of(message):
        copy["tool_calls"] = [_copy_call(call) for call in message["tool_calls"]]
    if isinstance(message.get("function_call"), dict):
        copy["function_call"] = dict(message["function_call"])
    return copy


def _copy_call(call: Any) -> Any:
    return {key: dict(v) if isinstance(v, dict) else v for key, v in call.items()} if isinstance(call, dict) else call
