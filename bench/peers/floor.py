"""The floor: the cost of grpc.aio alone. Every response is a message that was built beforehand; there is no upstream.

It runs on the same base as the service: uvloop, and the same generated messages. Model names are those of the rig:
`bench-<chunks>-<pace in ms>`, and `bench-hold`.
"""

import asyncio
import sys
from functools import cache
from typing import Any

import grpc
import uvloop

from chatrpc.v1.chat_response_pb2 import CreateChatCompletionResponse, CreateChatCompletionStreamResponse
from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceServicer, add_ChatCompletionServiceServicer_to_server

ID, CREATED, FINGERPRINT = "chatcmpl-bench0123456789abcdefghij", 1_700_000_000, "fp_bench"
TEXT = "The quick brown fox jumps over the lazy dog. " * 12


def answer() -> CreateChatCompletionResponse:
    response = CreateChatCompletionResponse(
        id=ID, object="chat.completion", created=CREATED, model="bench", system_fingerprint=FINGERPRINT
    )
    choice = response.choices.add(finish_reason="stop")
    choice.message.role, choice.message.content = "assistant", TEXT
    response.usage.prompt_tokens, response.usage.completion_tokens, response.usage.total_tokens = 60, 120, 180
    return response


def chunk(finish_reason: str | None = None, **delta: str) -> CreateChatCompletionStreamResponse:
    message = CreateChatCompletionStreamResponse(
        id=ID, object="chat.completion.chunk", created=CREATED, model="bench", system_fingerprint=FINGERPRINT
    )
    message.choices.add(finish_reason=finish_reason, delta=delta)
    return message


@cache
def chunks(count: int) -> list[CreateChatCompletionStreamResponse]:
    words = [chunk(content=f" word{number % 10}") for number in range(1, count - 1)]
    return [chunk(role="assistant", content=""), *words, chunk("stop")]


class Floor(ChatCompletionServiceServicer):
    def __init__(self) -> None:
        self._answer = answer()

    async def CreateChatCompletion(self, request: Any, context: Any) -> CreateChatCompletionResponse:
        return self._answer

    async def CreateChatCompletionStream(self, request: Any, context: Any) -> None:  # type: ignore[override]
        if request.model == "bench-hold":
            await context.write(chunks(3)[0])
            await asyncio.Event().wait()
        _, count, pace_ms = request.model.split("-")
        due = asyncio.get_running_loop().time()
        for message in chunks(int(count)):
            if pace_ms != "0":
                await asyncio.sleep(due - asyncio.get_running_loop().time())
                due += int(pace_ms) / 1000
            await context.write(message)


async def serve(port: str) -> None:
    server = grpc.aio.server()
    add_ChatCompletionServiceServicer_to_server(Floor(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
