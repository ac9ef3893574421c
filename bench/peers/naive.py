"""The naive wrapper: grpc.aio around OpenAI's own Python SDK, an afternoon's work.

Nothing in it is slow on purpose: it has the SDK's defaults, one client for all calls, an async generator as in grpc's
guides, and messages filled by hand.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from openai import AsyncOpenAI

from chatrpc.v1.chat_response_pb2 import CreateChatCompletionResponse, CreateChatCompletionStreamResponse
from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceServicer, add_ChatCompletionServiceServicer_to_server


class Naive(ChatCompletionServiceServicer):
    def __init__(self, base_url: str) -> None:
        self._client = AsyncOpenAI(base_url=base_url, api_key="sk-bench")

    async def CreateChatCompletion(self, request: Any, context: Any) -> CreateChatCompletionResponse:
        completion = await self._client.chat.completions.create(model=request.model, messages=messages(request))
        response = CreateChatCompletionResponse(**shared(completion))
        for choice in completion.choices:
            added = response.choices.add(index=choice.index, finish_reason=choice.finish_reason)
            added.message.role = choice.message.role
            added.message.content = choice.message.content or ""
        usage = completion.usage
        if usage:
            response.usage.prompt_tokens = usage.prompt_tokens
            response.usage.completion_tokens = usage.completion_tokens
            response.usage.total_tokens = usage.total_tokens
        return response

    async def CreateChatCompletionStream(
        self, request: Any, context: Any
    ) -> AsyncIterator[CreateChatCompletionStreamResponse]:
        stream = await self._client.chat.completions.create(
            model=request.model, messages=messages(request), stream=True
        )
        async for chunk in stream:
            response = CreateChatCompletionStreamResponse(**shared(chunk))
            for choice in chunk.choices:
                added = response.choices.add(index=choice.index, finish_reason=choice.finish_reason)
                if choice.delta.role:
                    added.delta.role = choice.delta.role
                if choice.delta.content is not None:
                    added.delta.content = choice.delta.content
            yield response


def messages(request: Any) -> list[Any]:
    return [{"role": message.role, "content": message.content} for message in request.messages]


def shared(answer: Any) -> dict[str, Any]:
    names = ("id", "object", "created", "model", "system_fingerprint")
    return {name: getattr(answer, name) for name in names}


async def serve(port: str, base_url: str) -> None:
    server = grpc.aio.server()
    add_ChatCompletionServiceServicer_to_server(Naive(base_url), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
