"""The choices of one stream: they tell when its completion has arrived, whatever the upstream sends or omits after it.

Rule 7 of protos/chatrpc/v1/chat_service.proto.
"""

from chatrpc.v1.chat_response_pb2 import ChunkChoice, Delta, ToolCallDelta
from chatrpc_server.core.openai import TEXT_FIELDS, limits
from chatrpc_server.core.upstream import ChatChunk

_MAX_RESUMPTIONS = 1
"""Choices that go on after their finish_reason. With more of them, the server repeats finish_reason in each chunk."""


class Choices:
    """The state of each choice. `requested` is the number of choices in the request."""

    def __init__(self, requested: int = 1) -> None:
        self.finish_reasons: dict[int, str] = {}
        """The latest finish reason of each choice, by the choice's index."""
        self.is_whole = False
        """Whether every choice so far has finished."""
        self._requested = requested
        self._open: set[int] = set()
        self._resumptions = 0

    @property
    def is_final(self) -> bool:
        """Whether nothing that follows belongs to the completion, so that it can be ignored."""
        return self.is_whole and len(self.finish_reasons) >= self._requested and self._resumptions <= _MAX_RESUMPTIONS

    @property
    def has_failed(self) -> bool:
        """Whether a choice has finished because of an error, which the upstream can describe in a later event."""
        return "error" in self.finish_reasons.values()

    def are_open(self, chunk: ChatChunk) -> bool:
        """Return whether no choice of the chunk has finished."""
        return all(choice.index in self._open for choice in chunk.choices)

    def add(self, choice: ChunkChoice) -> None:
        """Add the delta of one choice. Raises `InvalidResponse` if there are too many choices."""
        index = choice.index
        has_finished = index in self.finish_reasons and index not in self._open
        if has_finished and _goes_on(choice.delta):
            has_finished = False
            self._resumptions += 1
        if choice.finish_reason:
            self.finish_reasons[index] = choice.finish_reason[: limits.MAX_REASON_CHARACTERS]
            self._open.discard(index)
        elif not has_finished and index not in self._open:
            self._open.add(index)
        else:
            return
        limits.check("choices", len(self.finish_reasons.keys() | self._open), limits.MAX_CHOICES)
        self.is_whole = not self._open


def _goes_on(delta: Delta) -> bool:
    """Return whether a delta adds to the message. Usage and filter results come with an empty delta."""
    return (
        any(getattr(delta, name) for name in TEXT_FIELDS)
        or any(map(_calls_on, delta.tool_calls))
        or bool(delta.function_call.name or delta.function_call.arguments)
        or bool(delta.audio.data or delta.audio.transcript)
        or len(delta.content_parts) > 0
    )


def _calls_on(call: ToolCallDelta) -> bool:
    return bool(call.function.name or call.function.arguments or call.custom.name or call.custom.input)
