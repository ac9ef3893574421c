"""The port between the two edges: the inbound edge calls it, and every upstream implements it.

Every optional feature (retries, routing, failover, a cache) is another object with this interface around the first.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest as ChatRequest
from chatrpc.v1.chat_response_pb2 import CreateChatCompletionResponse as ChatResponse
from chatrpc.v1.chat_response_pb2 import CreateChatCompletionStreamResponse as ChatChunk
from chatrpc.v1.chat_response_pb2 import Usage
from chatrpc_server.core.call import Call

__all__ = ["ChatChunk", "ChatRequest", "ChatResponse", "Upstream", "Usage"]


class Upstream(Protocol):
    """A server that completes chats. Both methods raise only `core.errors.ChatError`."""

    async def complete(self, request: ChatRequest, call: Call) -> ChatResponse:
        """Return the complete response."""
        ...

    def stream(self, request: ChatRequest, call: Call) -> AsyncGenerator[Sequence[ChatChunk], None]:
        """Yield the response as it arrives: each item holds the chunks that arrived together, in order, at least one.

        The stream ends without an error only if the completion is complete. The consumer closes it with `aclosing`,
        which closes the connection.
        """
        ...
