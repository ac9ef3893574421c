"""Requests that are small on the wire and large when decompressed."""

import zlib

import grpc
import pytest

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from chatrpc_server.settings import Address
from support import http2, outcome, request
from support.flow_control import calling
from support.process import ANY_PORTS, running
from support.resources import peak_mebibytes

GZIP = 16 + zlib.MAX_WBITS
BOMB_MIB = 200


def _bomb(wbits: int) -> bytes:
    """Compress a message of `BOMB_MIB`: a text of as many zeros."""
    size = BOMB_MIB << 20
    compressor = zlib.compressobj(9, wbits=wbits)
    pieces = [compressor.compress(b"\x0a" + _varint(size))]
    pieces += [compressor.compress(bytes(1 << 20)) for _ in range(BOMB_MIB)]
    return b"".join([*pieces, compressor.flush()])


def _varint(value: int) -> bytes:
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


@pytest.mark.parametrize(
    ("encoding", "wbits"), [(b"gzip", GZIP), (b"deflate", zlib.MAX_WBITS)], ids=["gzip", "deflate"]
)
async def test_a_bomb_is_refused_before_it_is_large(echo: Echo, encoding: bytes, wbits: int) -> None:
    bomb = _bomb(wbits)
    with running("serve", *ANY_PORTS, f"--upstream.base-url={echo.base_url}") as serve:
        listen = serve.log("serving")["listen"]
        before = peak_mebibytes(serve.popen.pid)
        async with calling(Address.parse(listen)) as caller:
            stream = await caller.start(grpc_encoding=encoding)
            await caller.send(stream, http2.message(bomb, compressed=1), end=True)
            await caller.all_ended({stream})
        assert peak_mebibytes(serve.popen.pid) - before < BOMB_MIB / 2
        async with grpc.aio.insecure_channel(listen) as channel:
            ended = await outcome(ChatCompletionServiceStub(channel).CreateChatCompletion(request(), timeout=60))
            assert ended.code is grpc.StatusCode.OK
