"""The service of protos/chatrpc/v1/chat_service.proto: each RPC is one line, all else stands around it.

The pipeline calls these methods with a `Call` where grpc would pass its context: what a handler may know of the RPC is
in there, and what it could do to it is the layers' business.
"""

from collections.abc import AsyncGenerator, Sequence

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceServicer
from chatrpc_server.core.call import Call
from chatrpc_server.core.upstream import ChatChunk, ChatRequest, ChatResponse, Upstream


class ChatCompletionService(ChatCompletionServiceServicer):
    """Puts each request to the upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def CreateChatCompletion(  # type: ignore[override]  # a Call for the context
        self, request: ChatRequest, call: Call
    ) -> ChatResponse:
        """The whole answer at once."""
        return await self._upstream.complete(request, call)

    def CreateChatCompletionStream(  # type: ignore[override]  # batches of messages, for the pipeline to write
        self, request: ChatRequest, call: Call
    ) -> AsyncGenerator[Sequence[ChatChunk], None]:
        """The answer as it comes."""
        return self._upstream.stream(request, call)
