"""Two connections that flood the service: a bystander's calls succeed. Prints the bystander's times."""

import asyncio
import os
import sys
import time
from collections import Counter
from pathlib import Path

import grpc
import pytest

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from support import outcome, request
from support.flood import FRAMES, STREAMS
from support.process import ANY_PORTS, running

CONNECTIONS, CALLERS, SECONDS = 2, 4, 4.0
MAX_BYTES = 600 << 20
"""Memory of the process during a flood; it has 65 MB before."""


async def _flood(kind: str, address: str) -> str:
    """Run the flood in a process of its own, because it must not slow the bystander; return its output."""
    host, _, port = address.rpartition(":")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "support.flood", kind, host, port, str(SECONDS)),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    output, _ = await process.communicate()
    return output.decode().strip()


async def _call(address: str, times: list[float], flooding: "asyncio.Future[list[str]]") -> "Counter[grpc.StatusCode]":
    """Call until the flood ends; return the number of calls by status."""
    codes: Counter[grpc.StatusCode] = Counter()
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        stub = ChatCompletionServiceStub(channel)
        while not flooding.done():
            started = time.monotonic()
            codes[(await outcome(stub.CreateChatCompletion(request(), timeout=120))).code] += 1
            times.append(time.monotonic() - started)
    return codes


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("kind", "max_streams"), [*((kind, None) for kind in (*STREAMS, *FRAMES)), *((kind, 100) for kind in STREAMS)]
)
async def test_a_bystander_is_served(
    echo: Echo, kind: str, max_streams: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--log.format=json", f"--upstream.base-url={echo.base_url}"]
    if max_streams:
        arguments.append(f"--limits.max-streams-per-connection={max_streams}")
    with running("serve", *ANY_PORTS, *arguments, OPENAI_API_KEY="sk-none") as serve:
        address = serve.log("serving")["listen"]
        times: list[float] = []
        flooding = asyncio.gather(*(_flood(kind, address) for _ in range(CONNECTIONS)))
        codes = await asyncio.gather(*(_call(address, times, flooding) for _ in range(CALLERS)))
        resident = _resident_bytes(serve.popen.pid)
        assert {code for each in codes for code in each} == {grpc.StatusCode.OK}
        assert serve.popen.poll() is None
        assert resident < MAX_BYTES
        times.sort()
        with capsys.disabled():
            figures = f"p50 {times[len(times) // 2]:.3f} s, p99 {times[len(times) * 99 // 100]:.3f} s"
            print(f"\n{kind}: {len(times)} calls, {figures}; {resident >> 20} MiB; floods: {await flooding}")
