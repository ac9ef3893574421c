"""The port between the two edges: what the inbound edge asks for, what every upstream gives.

Whatever is optional (retries, routing, failover, a cache) is another object with this interface around the first.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest as ChatRequest
from chatrpc.v1.chat_response_pb2 import CreateChatCompletionResponse as ChatResponse
from chatrpc.v1.chat_response_pb2 import CreateChatCompletionStreamResponse as ChatChunk
from chatrpc_server.core.call import Call

__all__ = ["ChatChunk", "ChatRequest", "ChatResponse", "Upstream"]


class Upstream(Protocol):
    """Somewhere that completes chats. Both methods raise `core.errors.ChatError` and nothing else of their own."""

    async def complete(self, request: ChatRequest, call: Call) -> ChatResponse:
        """The whole answer at once."""
        ...

    def stream(self, request: ChatRequest, call: Call) -> AsyncGenerator[Sequence[ChatChunk], None]:
        """The answer as it comes: each item is what arrived together, in order, never empty.

        It ends normally only if the completion did; the caller closes it (`aclosing`), which closes the connection.
        """
        ...
