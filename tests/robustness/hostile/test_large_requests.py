"""Large requests that arrive at once: the process fits its memory limit, and each call has a result in words."""

import asyncio

import grpc
import pytest

from chatrpc_echo import Echo
from support import outcome, request
from support.process import ANY_PORTS, running
from support.resources import limit_address_space, peak_mebibytes

CHAT = "/chatrpc.v1.ChatCompletionService/CreateChatCompletion"
_MIB = 1 << 20
_LIMIT_MEBIBYTES = 768
"""The chart's memory limit."""
_ADDRESS_SPACE_BYTES = 1350 * _MIB
"""Further address space that the process can take. An allocation beyond it fails, which ends the process."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("text", ["x" * 18_999_996 + "\N{GRINNING FACE}", "\u6f22" * 6_333_333], ids=["emoji", "cjk"])
async def test_memory_of_large_requests_at_once(echo: Echo, text: str) -> None:
    """Thirty requests of 19 MB whose text is not ASCII. Small calls succeed meanwhile."""
    data, small = request(text).SerializeToString(), request().SerializeToString()
    command = ["serve", *ANY_PORTS, f"--upstream.base-url={echo.base_url}"]
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    with running(*command, OPENAI_API_KEY="x") as process:
        address, pid = process.log("serving")["listen"], process.popen.pid
        limit_address_space(pid, _ADDRESS_SPACE_BYTES)
        async with (
            grpc.aio.insecure_channel(address, options) as channel,
            grpc.aio.insecure_channel(address, options) as bystander,
        ):
            large = asyncio.gather(*(outcome(channel.unary_unary(CHAT)(data, timeout=200)) for _ in range(30)))
            while not large.done():
                assert (await outcome(bystander.unary_unary(CHAT)(small, timeout=200))).code is grpc.StatusCode.OK
            outcomes = await large
        assert process.popen.poll() is None
        assert {(each.code, each.reason) for each in outcomes} <= {
            (grpc.StatusCode.OK, ""),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "IN_FLIGHT_LIMIT"),
        }
        assert grpc.StatusCode.OK in {each.code for each in outcomes}
        peak = peak_mebibytes(pid)
        print(f"large requests: {peak:.0f} MiB at the peak")
        assert peak < _LIMIT_MEBIBYTES
