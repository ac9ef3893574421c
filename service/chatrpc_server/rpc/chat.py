"""The service of protos/chatrpc/v1/chat_service.proto. Each RPC is one line; the layers do the rest.

The pipeline passes a `Call` in place of grpc's context. It holds all that a handler can read about the RPC; only the
layers can change the RPC.
"""

from collections.abc import AsyncGenerator, Sequence

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceServicer
from chatrpc_server.core.call import Call
from chatrpc_server.core.upstream import ChatChunk, ChatRequest, ChatResponse, Upstream


class ChatCompletionService(ChatCompletionServiceServicer):
    """The servicer, which passes each request to the upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def CreateChatCompletion(  # type: ignore[override]  # a Call in place of the context
        self, request: ChatRequest, call: Call
    ) -> ChatResponse:
        """Return the complete response."""
        return await self._upstream.complete(request, call)

    def CreateChatCompletionStream(  # type: ignore[override]  # batches of messages, for the pipeline to write
        self, request: ChatRequest, call: Call
    ) -> AsyncGenerator[Sequence[ChatChunk], None]:
        """Return the response as a stream of chunk batches."""
        return self._upstream.stream(request, call)
