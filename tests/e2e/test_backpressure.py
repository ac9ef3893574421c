"""Callers that do not read stop the upstream and use bounded memory: a real process, 500 streams."""

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from support import Exchange, Script, request
from support.faults import chunk
from support.process import ANY_PORTS, running

STREAMS = 500
PIECES = chunk("x" * 1000) * 64
STREAM_BYTES = 1536 << 10
"""Limit of the service's memory for a stalled stream. About 1 MiB was measured: the data that was read ahead, the
chunks of one read, and the blocked message."""
NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.enable_http_proxy", 0)]
"""Otherwise gRPC buffers megabytes for a caller that does not read."""


class Endless(Script):
    """Sends until its writes block."""

    def __init__(self) -> None:
        super().__init__()
        self.sent_bytes = 0
        self.open = 0

    def choose(self, exchange: Exchange) -> object:
        return self._endlessly

    async def _endlessly(self, exchange: Exchange) -> None:
        self.open += 1
        # A small buffer, so that the kernel does not hold the data that the service does not read.
        exchange.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        try:
            with suppress(ConnectionError):
                await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
                while True:
                    await exchange.send(PIECES)
                    self.sent_bytes += len(PIECES)
                    await asyncio.sleep(0)  # so that the others run
        finally:
            self.open -= 1


def _resident_bytes(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


async def _until_nothing_is_sent(upstream: Endless) -> None:
    sent_bytes = -1
    while sent_bytes != upstream.sent_bytes:
        sent_bytes = upstream.sent_bytes
        await asyncio.sleep(1)


@pytest.mark.timeout(180)
async def test_callers_that_do_not_read() -> None:
    async with Endless() as upstream:
        with running("serve", *ANY_PORTS, OPENAI_BASE_URL=upstream.base_url) as process:
            address, pid = process.log("serving")["listen"], process.popen.pid
            async with grpc.aio.insecure_channel(address, NARROW) as channel:
                stub = ChatCompletionServiceStub(channel)
                before = _resident_bytes(pid)
                calls = [stub.CreateChatCompletionStream(request()) for _ in range(STREAMS)]
                for call in calls:
                    assert (await call.read()).choices[0].delta.content
                async with asyncio.timeout(60):  # because it becomes stable
                    await _until_nothing_is_sent(upstream)
                stalled = _resident_bytes(pid)
                assert upstream.open == STREAMS
                assert (stalled - before) / STREAMS < STREAM_BYTES
                # One that resumes its reads gets more, and the others still nothing.
                sent_bytes = upstream.sent_bytes
                for _ in range(100):
                    await calls[0].read()
                await _until_nothing_is_sent(upstream)
                assert upstream.sent_bytes > sent_bytes
                assert _resident_bytes(pid) - stalled < STREAMS * STREAM_BYTES / 100
                for call in calls:
                    call.cancel()
                async with asyncio.timeout(10):
                    while upstream.open:
                        await asyncio.sleep(0.05)
