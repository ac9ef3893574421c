"""Instances behind Envoy that start and stop under load: lost calls, with and without the settings of envoy.yaml."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc

from interop.balancing.names import HeadlessName
from interop.balancing.pods import HOSTS, Pod, connected
from interop.balancing.proxy import Change, Config, Proxied, as_shipped
from support.callers import NOTHING, SERVICE_CONFIG, begun, calling, load, rest, unary, until

Code = grpc.StatusCode


def without_health_and_retries(config: Config) -> None:
    """Remove both, because either alone prevents the loss."""
    config.cluster.pop("health_checks", None)
    config.action.pop("retry_policy", None)


def with_health_of_one_instance(config: Config) -> None:
    config.route["match"] = {"prefix": "/"}


DRAINS: dict[str, tuple[Change, dict[str, Any], bool]] = {
    "as shipped": (as_shipped, NOTHING, False),
    "as shipped, to callers with the service config": (as_shipped, SERVICE_CONFIG, False),
    "neither health checks nor retries": (without_health_and_retries, NOTHING, True),
    "health checks of callers through Envoy": (with_health_of_one_instance, SERVICE_CONFIG, True),
}


async def test_an_instance_that_drains_loses_no_call(proxied: Proxied, pods: list[Pod]) -> None:
    """Its address stays in DNS, so that Envoy must notice the drain itself."""
    async with AsyncExitStack() as stack:
        loads, watched = [], []
        for change, config, _ in DRAINS.values():
            one = await proxied(pods, change)
            stub = await stack.enter_async_context(calling(one.target, config))
            await unary(stub)
            active = await asyncio.to_thread(one.active)
            watched.append([pod for pod in pods if active[pod.host]])
            loads.append(await stack.enter_async_context(load(stub, callers=4)))
        *without, (leaving,) = watched
        assert not any(without)
        await until(lambda: all(outcomes.total() > 20 for outcomes in loads))
        assert await leaving.drain() == 0
        before = [outcomes.total() for outcomes in loads]
        await until(lambda: all(now.total() > then + 20 for now, then in zip(loads, before, strict=True)))
    loses = {what: outcomes.keys() != {"whole"} for what, outcomes in zip(DRAINS, loads, strict=True)}
    assert loses == {what: expected for what, (_, _, expected) in DRAINS.items()}, loads
    assert not any(outcomes["cut"] for outcomes in loads)


def in_turn_and_with_time_between(config: Config) -> None:
    """Select the dead instance in turn, and let more of a request arrive than Envoy buffers by default."""
    config.cluster["lb_policy"] = "ROUND_ROBIN"
    config.action["retry_policy"]["retry_back_off"] = {"base_interval": "0.5s"}


def without_buffer(config: Config) -> None:
    in_turn_and_with_time_between(config)
    config.route.pop("request_body_buffer_limit", None)


SMALL, LARGE = "Hello!", "x" * (19 << 20)
KILLS: dict[str, tuple[Change, str, set[Code]]] = {
    "as shipped": (as_shipped, SMALL, {Code.OK}),
    "no retries": (lambda it: it.action.pop("retry_policy", None), SMALL, {Code.OK, Code.UNAVAILABLE}),
    "three at once": (lambda it: it.breakers.pop("max_retries", None), SMALL, {Code.OK, Code.UNAVAILABLE}),
    "large": (in_turn_and_with_time_between, LARGE, {Code.OK}),
    "large, and not buffered": (without_buffer, LARGE, {Code.OK, Code.UNKNOWN}),
}


async def test_a_killed_instance_loses_no_call(proxied: Proxied, pods: list[Pod]) -> None:
    """Even before a health check notices; here there is none after the first."""
    codes = {}
    async with AsyncExitStack() as stack:
        stubs = []
        for change, _, _ in KILLS.values():

            def changed(config: Config, change: Change = change) -> None:
                config.cluster["health_checks"][0].update(interval="60s", no_traffic_interval="60s")
                change(config)

            one = await proxied(pods, changed)
            stubs.append(await stack.enter_async_context(calling(one.target, NOTHING)))
        await pods[0].kill()
        for (what, (_, text, _)), stub in zip(KILLS.items(), stubs, strict=True):
            if text is SMALL:
                ended = await asyncio.gather(*(unary(stub, "echo:delay=0.2") for _ in range(100)))
            else:
                ended = [await unary(stub, text=text) for _ in range(4)]
            codes[what] = {each.code for each in ended}
    assert codes == {what: expected for what, (_, _, expected) in KILLS.items()}


async def test_only_callers_can_retry_calls_started_by_a_killed_instance(proxied: Proxied, pods: list[Pod]) -> None:
    target = (await proxied(pods)).target
    async with calling(target, NOTHING) as plain, calling(target, SERVICE_CONFIG) as retrying:
        await connected(plain, pods)
        streams = [await begun(retrying, "echo:pieces=9,gap=2") for _ in range(10)]
        models = {"echo:delay=1": plain, "echo:delay=1.1": retrying}
        waiting = [[unary(stub, model) for _ in range(10)] for model, stub in models.items()]
        await until(lambda: all(sum(pod.call_count(model) for pod in pods) == 10 for model in models))
        assert all(pods[0].call_count(model) for model in models)
        await pods[0].kill()
        codes = [{(await each).code for each in calls} for calls in waiting]
        codes.append({await rest(each) for each in streams})
    assert codes == [{Code.OK, Code.UNAVAILABLE}, {Code.OK}, {Code.OK, Code.INTERNAL}]


async def test_connections_that_age_lose_no_call(proxied: Proxied, ageing: list[Pod]) -> None:
    one = await proxied(ageing)
    async with calling(one.target, NOTHING) as stub, load(stub) as outcomes:
        async with asyncio.timeout(10):
            while await asyncio.to_thread(one.stat, "cluster.chatrpc.upstream_cx_total") <= 2 * len(HOSTS):
                await asyncio.sleep(0.05)
    assert outcomes.keys() == {"whole"}, outcomes


async def test_a_new_instance_is_found(proxied: Proxied, pods: list[Pod], name: HeadlessName) -> None:
    """Envoy resolves the name, independently of connections."""
    name.addresses = HOSTS[:1]
    async with calling((await proxied(pods)).target, NOTHING) as stub, load(stub) as outcomes:
        await until(lambda: outcomes.total() > 50)
        assert not pods[1].call_count()
        name.addresses = HOSTS
        await until(lambda: pods[1].call_count() > 10)
    assert outcomes.keys() == {"whole"}, outcomes
