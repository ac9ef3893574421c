"""The two RPCs over a real channel and real sockets: the normal cases."""

from support import Service, collect, request


async def test_unary(chat: Service) -> None:
    call = chat.stub.CreateChatCompletion(request("Hi there"))
    response = await call
    assert response.choices[0].message.content == "You said: Hi there"
    assert response.choices[0].finish_reason == "stop"
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens > 0


async def test_the_stream_is_the_unary_response_in_pieces(chat: Service) -> None:
    chunks = await collect(chat.stub.CreateChatCompletionStream(request("Hi there", "echo:pace=0.001")))
    assert "".join(choice.delta.content for chunk in chunks for choice in chunk.choices) == "You said: Hi there"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]
    assert len(chunks) > 3
    assert not chunks[-1].choices
    assert chunks[-1].usage.completion_tokens > 0
