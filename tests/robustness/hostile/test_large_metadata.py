"""Metadata that is too large is refused always and in words; up to 64 KiB it never is."""

import grpc
import pytest

from support import Service, outcome, request

KIB = 1 << 10
ENTRIES = {"one": 1, "sixteen": 16}


@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("size", [9 * KIB, 15 * KIB, 40 * KIB, 64 * KIB])
async def test_metadata_up_to_64_kib_is_accepted(size: int, entries: int, chat: Service) -> None:
    metadata = [(f"x-large-{number}", "v" * (size // entries)) for number in range(entries)]
    for _ in range(5):  # gRPC would reject by chance between a soft and a hard limit
        assert (await outcome(chat.stub.CreateChatCompletion(request(), metadata=metadata))).code is grpc.StatusCode.OK


@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("size", [73 * KIB, 200 * KIB])
async def test_larger_metadata_is_refused_in_words(size: int, entries: int, chat: Service) -> None:
    metadata = [(f"x-large-{number}", "secret" * (size // entries // 6)) for number in range(entries)]
    for _ in range(5):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await chat.stub.CreateChatCompletion(request(), metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        details = refused.value.details() or ""
        assert "received metadata size exceeds hard limit" in details
        assert "secret" not in details
    assert (await outcome(chat.stub.CreateChatCompletion(request()))).code is grpc.StatusCode.OK
