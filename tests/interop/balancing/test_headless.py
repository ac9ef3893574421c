"""Two pods behind a headless name, and callers that balance themselves: shutdowns, losses and changes in DNS."""

import asyncio
from typing import Any

import grpc
import pytest

from interop.balancing.names import HeadlessName
from interop.balancing.pods import HOSTS, Pod, connected
from support.callers import SERVICE_CONFIG, begun, calling, load, rest, stream, unary, until, whole

Code = grpc.StatusCode
LONG, SHORTER = "echo:pieces=100,pace=0.05", "echo:pieces=50,pace=0.05"
RETRYING = {key: value for key, value in SERVICE_CONFIG.items() if key != "healthCheckConfig"}


async def test_calls_spread_evenly(pods: list[Pod], name: HeadlessName) -> None:
    async with calling(name.target(pods[0].port)) as stub:
        await connected(stub, pods)
        before = [pod.call_count() for pod in pods]
        for _ in range(40):
            await unary(stub)
    assert [pod.call_count() - earlier for pod, earlier in zip(pods, before, strict=True)] == [20, 20]


async def test_a_pod_that_drains_loses_no_call_and_cuts_no_stream(pods: list[Pod], name: HeadlessName) -> None:
    one, two = pods
    async with calling(name.target(one.port)) as stub, load(stub) as outcomes:
        await until(lambda: outcomes.total() > 50)
        streams = []
        while not one.call_count(LONG):
            streams.append(stream(stub, LONG))
            await until(lambda: one.call_count(LONG) + two.call_count(LONG) == len(streams))
        name.addresses = HOSTS[1:]  # Kubernetes removes a pod from DNS when it requests the stop
        assert await one.drain() == 0
        assert all([whole(await each, 100) for each in streams])
    assert outcomes.keys() == {"whole"}, outcomes


async def test_a_killed_pod_loses_only_started_responses(pods: list[Pod], name: HeadlessName) -> None:
    """Calls without a response are retried. Started responses fail without details."""
    async with calling(name.target(pods[0].port)) as stub:
        cut = await begun(stub, "echo:pieces=9,gap=30")
        (lost,) = [pod for pod in pods if pod.call_count()]
        await connected(stub, pods)
        waiting = [unary(stub, "echo:delay=1") for _ in range(8)]
        await until(lambda: sum(pod.call_count("echo:delay=1") for pod in pods) == 8)
        assert lost.call_count("echo:delay=1")
        await lost.kill()
        assert await rest(cut) is Code.UNAVAILABLE
        assert "grpc-status-details-bin" not in dict(await cut.trailing_metadata() or ())
        codes = [(await each).code for each in waiting]
        codes += [(await unary(stub)).code for _ in range(20)]  # its address is still in DNS
    assert {*codes} == {Code.OK}


@pytest.mark.parametrize(
    ("config", "loses"), [(RETRYING, False), (SERVICE_CONFIG, True)], ids=["retrying", "watching-too"]
)
async def test_the_only_known_pod_is_replaced(
    pods: list[Pod], name: HeadlessName, config: dict[str, Any], loses: bool
) -> None:
    """Callers resolve a name again when a connection closes, not when its pod becomes unhealthy."""
    one, two = pods
    name.addresses = HOSTS[:1]
    async with calling(name.target(one.port), config) as stub, load(stub) as outcomes:
        await until(lambda: outcomes.total() > 50)
        name.addresses = HOSTS[1:]
        assert name.query_count == 1
        assert await one.drain() == 0
        await asyncio.wait_for(two.echo.arrived(), 5)
    assert any(ended.endswith("backend unhealthy") for ended in outcomes) == loses
    assert loses or outcomes.keys() == {"whole"}, outcomes


async def test_a_new_pod_is_found_when_a_connection_has_aged(ageing: list[Pod], name: HeadlessName) -> None:
    """Calls on that connection continue, and no call is lost."""
    one, two = ageing
    name.addresses = HOSTS[:1]
    async with calling(name.target(one.port)) as stub:
        under_way = stream(stub, SHORTER)
        await one.echo.arrived()
        name.addresses = HOSTS
        assert name.query_count == 1
        async with load(stub) as outcomes:
            await until(lambda: two.call_count() > 10)
        assert whole(await under_way, 50)
    assert outcomes.keys() == {"whole"}, outcomes
