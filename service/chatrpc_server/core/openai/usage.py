"""Usage of streams: which streams request it, which callers get it, and for which models the upstream cannot send it.

The service requests usage of every stream because the metrics count tokens. A caller declines the usage chunk with
`stream_options.include_usage: false`. If the upstream rejects `stream_options` for a model, only a caller's own request
is sent for it.
"""

from dataclasses import dataclass, replace
from typing import Any

from chatrpc.v1.chat_response_pb2 import ChunkChoice
from chatrpc_server.core.errors import ErrorResponse
from chatrpc_server.core.upstream import ChatChunk, ChatRequest


@dataclass(frozen=True, slots=True)
class StreamUsage:
    """The decisions for one stream."""

    is_requested: bool = False
    """Whether the service requests usage, independently of the caller."""
    is_required: bool = False
    """Whether the caller requests usage."""
    is_declined: bool = False
    """Whether the caller declines the usage chunk."""

    def write(self, body: dict[str, Any]) -> None:
        """Set `stream_options.include_usage` in the JSON body of a stream, or remove it."""
        if self.is_requested:
            options = body.setdefault("stream_options", {})
            if isinstance(options, dict):
                options["include_usage"] = True
        elif self.is_declined:
            # Removed, because the value is for the service, and an upstream without usage can reject the key.
            del body["stream_options"]["include_usage"]
            if not body["stream_options"]:
                del body["stream_options"]

    def hides(self, chunk: ChatChunk) -> bool:
        """Return whether a chunk with usage is hidden from the caller. A chunk with other content is never hidden."""
        return self.is_declined and not any(map(_has_content, chunk.choices))

    def fallback(self, error: ErrorResponse) -> "StreamUsage | None":
        """Return the decisions for a second attempt, or None if the service's request for usage is not the cause."""
        if not self.is_requested or self.is_required or not _rejects_stream_options(error):
            return None
        return replace(self, is_requested=False)


_MAX_MODELS = 1000
"""Limit of remembered models, because callers choose their names. A forgotten one costs one more rejected request."""

NO_USAGE = StreamUsage()
"""Neither requested nor declined."""


class UsagePolicy:
    """The state of one upstream: it accepts `stream_options` for a model until `disable` is called with it."""

    def __init__(self) -> None:
        self._unsupported: dict[int, None] = {}
        """Hashes of models, oldest first: hashes, because a name can be as long as a request."""

    def of_stream(self, request: ChatRequest) -> StreamUsage:
        """Return the decisions for a new stream."""
        options = request.stream_options
        return StreamUsage(
            is_requested=hash(request.model) not in self._unsupported,
            is_required=options.include_usage,
            is_declined=options.HasField("include_usage") and not options.include_usage,
        )

    def disable(self, model: str) -> None:
        """Stop requesting usage of a model. Call it after a successful fallback, which proves that it is rejected."""
        if len(self._unsupported) >= _MAX_MODELS:
            del self._unsupported[next(iter(self._unsupported))]
        self._unsupported[hash(model)] = None


def _has_content(choice: ChunkChoice) -> bool:
    """Return whether a choice has content. LiteLLM sends the usage beside a choice with an empty delta."""
    return bool(choice.finish_reason or choice.delta.ByteSize() or choice.HasField("logprobs") or choice.extra_json)


def _rejects_stream_options(error: ErrorResponse) -> bool:
    texts = (error.detail.param, error.message, error.detail.raw_body)
    return error.status in (400, 422) and any("stream_options" in text or "include_usage" in text for text in texts)
