"""Two instances behind Envoy, with envoy.yaml and without some of its settings.

A test of a setting also runs an Envoy without it, in front of the same instances at the same time.
"""

import asyncio
import subprocess

import grpc
import pytest

from chatrpc_server.settings import Settings
from interop.balancing.pods import DRAIN_DELAY_SECONDS, Pod, connected
from interop.balancing.proxy import CONFIG, MISSING, PROGRAM, Change, Config, Proxied, as_shipped
from support import Outcome
from support.callers import NOTHING, calling, stream, unary, until

Code = grpc.StatusCode
SECONDS_OF_SILENCE = 16
SILENT = f"echo:pieces=9,gap={SECONDS_OF_SILENCE}"


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def codes(ended: list[Outcome]) -> set[Code]:
    return {each.code for each in ended}


async def total(pods: list[Pod], metric: str) -> float:
    return sum([await asyncio.to_thread(pod.metric, metric) for pod in pods])


@pytest.mark.skipif(not PROGRAM, reason=MISSING)
def test_the_file_is_valid() -> None:
    checked = subprocess.run(
        [str(PROGRAM), "--mode", "validate", "--config-path", CONFIG], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert "deprecated" not in checked.stderr.lower()


def test_the_file_fits_the_services_settings() -> None:
    """Its comments derive these numbers from the service's defaults."""
    config, service = Config(), Settings()
    assert seconds(config.http["stream_idle_timeout"]) > service.limits.default_deadline_seconds
    assert config.route["request_body_buffer_limit"] > service.limits.max_message_bytes
    (check,) = config.cluster["health_checks"]
    to_notice = check["unhealthy_threshold"] * (seconds(check["interval"]) + seconds(check["timeout"]))
    assert to_notice < service.drain.delay_seconds
    assert seconds(check["interval"]) * check["unhealthy_threshold"] < DRAIN_DELAY_SECONDS


async def test_calls_of_one_connection_spread(proxied: Proxied, pods: list[Pod]) -> None:
    shipped = await proxied(pods)
    async with calling(shipped.target, NOTHING) as stub:
        await connected(stub, pods)
        ended = await asyncio.gather(*(unary(stub, "echo:delay=0.5") for _ in range(40)))
    assert codes(ended) == {Code.OK}
    counts = [pod.call_count("echo:delay=0.5") for pod in pods]
    assert min(counts) >= 15, counts
    assert await asyncio.to_thread(shipped.stat, "http.chatrpc.downstream_cx_total") == 1


def without_any_timeout(config: Config) -> None:
    """Remove both, because either of them replaces Envoy's 15 s."""
    for name in ("timeout", "max_stream_duration"):
        config.action.pop(name, None)


def with_pings_each_second(config: Config) -> None:
    (options,) = config.cluster["typed_extension_protocol_options"].values()
    options["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]["interval"] = "1s"


CUTS: dict[str, tuple[Change, set[Code]]] = {
    "as shipped": (as_shipped, {Code.OK}),
    "Envoy's 15 s for a response": (without_any_timeout, {Code.INTERNAL}),
    "a shorter idle timeout": (lambda it: it.http.update(stream_idle_timeout="1s"), {Code.INTERNAL}),
    "more pings than the service allows": (with_pings_each_second, {Code.UNAVAILABLE}),
    # Envoy also shortens the deadline that it forwards, so either side may cancel the call.
    "a limit to deadlines": (
        lambda it: it.action.update(max_stream_duration={"grpc_timeout_header_max": "1s"}),
        {Code.INTERNAL, Code.DEADLINE_EXCEEDED},
    ),
}


async def test_streams_are_not_cut(proxied: Proxied, pods: list[Pod]) -> None:
    async def through(change: Change) -> Outcome:
        async with calling((await proxied(pods, change)).target, NOTHING) as stub:
            return await stream(stub, SILENT, timeout=SECONDS_OF_SILENCE + 10)

    ended = await asyncio.gather(*(through(change) for change, _ in CUTS.values()))
    seen = {what: each.code for what, each in zip(CUTS, ended, strict=True)}
    assert all(seen[what] in expected for what, (_, expected) in CUTS.items()), seen
    assert all(each.messages for each in ended), "every stream had started"


async def test_a_cancel_and_a_deadline_reach_the_upstream(proxied: Proxied, pods: list[Pod]) -> None:
    """The service has the deadline from the start, so it needs no cancel for it."""
    async with calling((await proxied(pods)).target, NOTHING) as stub:
        calls = [call(stub, "echo:delay=60", timeout=None) for call in (unary, stream)]
        await until(lambda: sum(pod.call_count() for pod in pods) == 2)
        for each in calls:
            each.cancel()
        ended = await asyncio.gather(*(call(stub, "echo:delay=60", timeout=0.5) for call in (unary, stream)))
    for pod in pods:
        for received in pod.echo.requests:
            await asyncio.wait_for(received.disconnected.wait(), 5)
    assert codes(ended) == {Code.DEADLINE_EXCEEDED}
    assert await total(pods, "chatrpc_deadline_missing_total") == 2
    assert await total(pods, "chatrpc_deadline_remaining_at_start_seconds_count") == 2
    assert 0.5 < await total(pods, "chatrpc_deadline_remaining_at_start_seconds_sum") < 1.1


OURS = {"x-request-id": "5437474f-c276-49b8-8dcd-1495e600fb5f", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
ONE_BY_ONE = ("x-chatrpc-coalesce", "off")
THEIRS = {"date", "server", "x-envoy-upstream-service-time"}
"""Trailers that Envoy adds."""


async def test_responses_are_the_same_as_without_envoy(proxied: Proxied, pods: list[Pod]) -> None:
    """Envoy does not retry calls to which the service has responded, either."""
    models = ["echo", "echo:status=429,retry_after=7", "echo:status=503", "echo:pieces=9,truncate=3", "unknown"]
    reasons = ["", "UPSTREAM_RATE_LIMITED", "UPSTREAM_OVERLOADED", "UPSTREAM_TRUNCATED", "UPSTREAM_MODEL_NOT_FOUND"]
    metadata = (*OURS.items(), ONE_BY_ONE)
    seen = []
    for target in (f"{pods[0].host}:{pods[0].port}", (await proxied(pods)).target):
        async with calling(target, NOTHING) as stub:
            ended = [await call(stub, each, metadata=metadata) for call in (unary, stream) for each in models]
        for each in ended:
            each.trailers = {key: value for key, value in each.trailers.items() if key not in THEIRS}
        seen.append(ended)
    direct, through = seen
    assert through == direct
    assert [each.reason for each in through[len(models) :]] == reasons
    assert [sum(pod.call_count(model) for pod in pods) for model in models] == [4] * len(models)
    for pod in pods:
        for received in pod.echo.requests:
            assert {name: received.headers[name] for name in OURS} == OURS


async def test_messages_of_20_mib(proxied: Proxied, pods: list[Pod]) -> None:
    most = 20 << 20
    async with calling((await proxied(pods)).target, NOTHING) as stub:
        sent = await unary(stub, text="x" * (most - 100))
        received = await unary(stub, f"echo:size={most - 1000}")
    assert codes([sent, received]) == {Code.OK}
    assert most - 1000 < received.messages[0].ByteSize() <= most


AT_ONCE, DEFAULT = 1100, 1024
LIMITS: dict[str, tuple[Change, int, int]] = {
    "as shipped": (as_shipped, AT_ONCE, 0),
    "of one connection": (lambda it: it.http["http2_protocol_options"].pop("max_concurrent_streams", None), DEFAULT, 0),
    "of all": (lambda it: it.breakers.pop("max_requests", None), DEFAULT, AT_ONCE - DEFAULT),
}


@pytest.mark.parametrize(("change", "arriving", "refused"), LIMITS.values(), ids=LIMITS)
async def test_more_calls_at_once_than_by_default(
    proxied: Proxied, pods: list[Pod], change: Change, arriving: int, refused: int
) -> None:
    """Without the settings, further calls wait unseen in the caller, or Envoy rejects them without naming the limit."""
    one = await proxied(pods, change)
    async with calling(one.target, NOTHING) as stub:
        calls = [unary(stub, "echo:delay=60", timeout=None) for _ in range(AT_ONCE)]
        await until(lambda: sum(pod.call_count() for pod in pods) == arriving)
        await until(lambda: sum(call.done() for call in calls) == refused)
        assert await asyncio.to_thread(one.stat, "http.chatrpc.downstream_rq_active") == arriving
        assert {call.result().code for call in calls if call.done()} <= {Code.UNAVAILABLE}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_outlier_detection_would_eject_all_instances(proxied: Proxied, pods: list[Pod]) -> None:
    """It ejects them for the model's fault."""
    assert "outlier_detection" not in Config().cluster
    one = await proxied(pods, lambda it: it.cluster.update(outlier_detection={"max_ejection_percent": 100}))
    async with calling(one.target, NOTHING) as stub:
        for _ in range(30):
            assert (await unary(stub, "echo:status=503")).code is Code.UNAVAILABLE
    assert await asyncio.to_thread(one.stat, "cluster.chatrpc.outlier_detection.ejections_enforced_total") >= 2
