"""More calls at once than gRPC holds by default: admission refuses them with a reason, and metrics count each."""

from asyncio import gather
from collections import Counter
from contextlib import AsyncExitStack

import grpc
import pytest

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from support import outcome, request, service

OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
CONNECTIONS = 10
IN_FLIGHT_LIMIT = (grpc.StatusCode.RESOURCE_EXHAUSTED, "IN_FLIGHT_LIMIT")


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("max_in_flight", "calls"),
    [
        pytest.param(200, 2000, id="quick"),
        pytest.param(1000, 3000, id="default", marks=_SLOW),
        pytest.param(50, 3000, id="above-the-streams", marks=_SLOW),
        pytest.param(1000, 9000, id="more", marks=_SLOW),
    ],
)
@pytest.mark.timeout(300)
async def test_every_call_of_a_burst_has_a_reason_and_is_counted(max_in_flight: int, calls: int, echo: Echo) -> None:
    """With 50 calls in flight, a connection has 100 streams: 200 of its 300 calls wait in the client."""
    async with service(echo.base_url, limits={"max_in_flight": max_in_flight}) as chat, AsyncExitStack() as stack:
        stubs = []
        for _ in range(CONNECTIONS):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(str(chat.server.address), OPTIONS))
            await channel.channel_ready()
            stubs.append(ChatCompletionServiceStub(channel))
        slow = request(model="echo:pieces=2,pace=0.5")
        ended = await gather(
            *(outcome(stubs[number % CONNECTIONS].CreateChatCompletion(slow)) for number in range(calls))
        )
        counts = Counter((call.code, call.reason) for call in ended)
        refused = counts.pop(IN_FLIGHT_LIMIT, 0)
        answered = counts.pop((grpc.StatusCode.OK, ""), 0)
        assert not counts
        assert answered >= max_in_flight
        assert all("RetryInfo" in call.details for call in ended if call.reason)
        await chat.wait_for(answered, "grpc_server_handled_total", grpc_code="OK")
        await chat.wait_for(refused, "grpc_server_handled_total", grpc_code="ResourceExhausted")


async def test_a_huge_limit_starts(echo: Echo) -> None:
    """The options that follow from it are at most the largest number that gRPC takes."""
    async with service(echo.base_url, limits={"max_in_flight": 1 << 40}) as chat:
        assert (await outcome(chat.stub.CreateChatCompletion(request()))).code is grpc.StatusCode.OK
