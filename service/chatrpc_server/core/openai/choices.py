"""The choices of one stream: they determine when its completion is whole.

What the upstream sends or omits later has no effect.

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
    def can_fail(self) -> bool:
        """Whether a later event can fail the stream, such as the error because of which a choice has finished."""
        return not self.is_final or "error" in self.finish_reasons.values()

    def complete(self) -> None:
        """Count all choices as finished, because the completion was not streamed but arrived as a whole."""
        self._open.clear()
        self._requested = 0
        self.is_whole = True

    def are_open(self, chunk: ChatChunk) -> bool:
        """Return whether no choice of the chunk has finished."""
        return all(choice.index in self._open for choice in chunk.choices)

    def add(self, choice: ChunkChoice) -> None:
        """Add the delta of one choice. Raises `InvalidResponse` if there are too many choices."""
        index, reason = choice.index, choice.finish_reason
        if index in self._open:
            if not reason:
                return
            self._open.remove(index)
        elif index in self.finish_reasons:
            if _goes_on(choice.delta):
                self._resumptions += 1
                if not reason:
                    self._open.add(index)
        else:
            limits.check("choices", len(self.finish_reasons.keys() | self._open) + 1, limits.MAX_CHOICES)
            if not reason:
                self._open.add(index)
        if reason:
            self.finish_reasons[index] = reason[: limits.MAX_REASON_CHARACTERS]
        self.is_whole = not self._open


def _goes_on(delta: Delta) -> bool:
    """Return whether a delta adds to the message. Usage and filter results come with an empty delta."""
    return delta.ByteSize() > 0 and (
        any(getattr(delta, name) for name in TEXT_FIELDS)
        or any(map(_calls_on, delta.tool_calls))
        or bool(delta.function_call.name or delta.function_call.arguments)
        or bool(delta.audio.data or delta.audio.transcript)
        or len(delta.content_parts) > 0
    )


def _calls_on(call: ToolCallDelta) -> bool:
    return bool(call.function.name or call.function.arguments or call.custom.name or call.custom.input)
