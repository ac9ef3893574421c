"""A process that runs out of file descriptors: calls that need one are refused, health and metrics respond."""

import asyncio
import resource
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from support import outcome, request
from support.process import ANY_PORTS, Process, running

HELD = request(model="echo:pieces=100000,pace=1")
"""A stream that lasts longer than the test."""
SLOW = [pytest.mark.slow, pytest.mark.timeout(300)]
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


def _command(limit: int) -> list[str]:
    """Return the command of a service with this limit of open files, soft and hard."""
    return ["bash", "-c", f'ulimit -n {limit}; exec "$0" -m chatrpc_server "$@"', sys.executable]


async def _health(address: str) -> Any:
    """Return the health over a new connection."""
    async with grpc.aio.insecure_channel(address, OPTIONS) as channel:
        response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        return response.status


async def _metrics(address: str) -> "Counter[str]":
    """Return the sums of the metrics over a new connection, by name and by name with its reason or outcome."""

    def scrape() -> str:
        with urllib.request.urlopen(address, timeout=60) as response:
            return bytes(response.read()).decode()

    sums: Counter[str] = Counter()
    for family in text_string_to_metric_families(await asyncio.to_thread(scrape)):
        for sample in family.samples:
            sums[sample.name] += int(sample.value)
            for label in ("reason", "outcome"):
                if label in sample.labels:
                    sums[f"{sample.name} {sample.labels[label]}"] += int(sample.value)
    return sums


@asynccontextmanager
async def _streams(stub: Any, count: int) -> AsyncIterator[list[Any]]:
    """Start streams; the value is the outcomes of those that fail, after all others have begun."""
    calls: list[Any] = []
    starting = asyncio.Semaphore(100)

    async def start() -> Any:
        async with starting:
            calls.append(call := stub.CreateChatCompletionStream(HELD, timeout=600))
            return await outcome(anext(aiter(call)))

    try:
        outcomes = await asyncio.gather(*(start() for _ in range(count)))
        yield [each for each in outcomes if each.code is not grpc.StatusCode.OK]
    finally:
        for call in calls:
            call.cancel()


async def _exhaust(serve: Process, limit: int) -> None:
    serving = serve.log("serving")
    async with grpc.aio.insecure_channel(serving["listen"], OPTIONS) as channel:
        stub = ChatCompletionServiceStub(channel)
        for _ in range(2):  # also after a recovery
            async with _streams(stub, limit + 50) as refused:
                assert 50 <= len(refused) < limit
                assert {each.reason for each in refused} == {"IN_FLIGHT_LIMIT"}
                assert {each.code for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
                assert all(each.details["RetryInfo"].retry_delay.seconds == 1 for each in refused)
                again = await outcome(stub.CreateChatCompletion(request(), timeout=60))
                assert again.reason == "IN_FLIGHT_LIMIT"
                assert "limits.max_in_flight" in again.message
                for address in (serving["listen"], serving["health"]):
                    assert await _health(address) == health_pb2.HealthCheckResponse.SERVING
                found = await _metrics(serving["metrics"])
            async with asyncio.timeout(60):
                while (await outcome(stub.CreateChatCompletion(request(), timeout=60))).code is not grpc.StatusCode.OK:
                    await asyncio.sleep(0.05)
        assert found["chatrpc_admission_rejected_total descriptors"] >= 2 * 51
        assert not found["chatrpc_upstream_requests_total no_response"], "it is not the upstream's fault"
        assert not found["chatrpc_upstream_retries_total"]
    serve.signal()
    assert serve.wait() == 0
    events = Counter(line.partition('"event":"')[2].partition('"')[0] for line in serve.lines)
    assert 1 <= events["descriptors_exhausted"] <= 10, "loud, but not a line for each call"
    assert events["descriptor_limit_low"] == 1
    assert not events["upstream_connect_failed"]


@pytest.mark.parametrize(
    ("http_client", "host", "limit"),
    [
        ("builtin", "127.0.0.1", 150),
        pytest.param("httpx", "127.0.0.1", 150, marks=SLOW),
        pytest.param("builtin", "localhost", 1024, marks=SLOW),
        pytest.param("httpx", "localhost", 1024, marks=SLOW),
    ],
)
async def test_no_descriptor_is_left(echo: Echo, http_client: str, host: str, limit: int) -> None:
    arguments = [
        "--health-listen=127.0.0.1:0",
        "--log.format=json",
        "--limits.max-in-flight=5000",
        f"--upstream.http-client={http_client}",
        f"--upstream.base-url={echo.base_url.replace('127.0.0.1', host)}",
    ]
    with running("serve", *ANY_PORTS, *arguments, command=_command(limit), OPENAI_API_KEY="sk-none") as serve:
        await _exhaust(serve, limit)


async def test_connections_leave_descriptors_for_calls_and_health(echo: Echo) -> None:
    """Half of the descriptors are for connections of callers; further ones are closed at once."""
    limit = 150
    arguments = ["--health-listen=127.0.0.1:0", "--log.format=json", f"--upstream.base-url={echo.base_url}"]
    with running("serve", *ANY_PORTS, *arguments, command=_command(limit), OPENAI_API_KEY="sk-none") as serve:
        serving = serve.log("serving")
        host, _, port = serving["listen"].rpartition(":")
        async with grpc.aio.insecure_channel(serving["listen"], OPTIONS) as channel:
            stub = ChatCompletionServiceStub(channel)
            assert (await outcome(stub.CreateChatCompletion(request(), timeout=60))).code is grpc.StatusCode.OK
            idle = [await asyncio.open_connection(host, int(port)) for _ in range(2 * limit)]
            closed = [asyncio.create_task(reader.read()) for reader, _ in idle]
            async with asyncio.timeout(60):
                while sum(task.done() for task in closed) < limit:
                    await asyncio.sleep(0.05)
            calls = [stub.CreateChatCompletion(request(), timeout=60) for _ in range(20)]
            assert {(await outcome(call)).code for call in calls} == {grpc.StatusCode.OK}
            assert await _health(serving["health"]) == health_pb2.HealthCheckResponse.SERVING
            assert (await _metrics(serving["metrics"]))["process_max_fds"] == limit
            for task in closed:
                task.cancel()
            for _, writer in idle:
                writer.close()
            async with asyncio.timeout(60):
                while not await _is_reachable(serving["listen"]):
                    await asyncio.sleep(0.05)
    assert not [line for line in serve.lines if "descriptors_exhausted" in line]


async def _is_reachable(address: str) -> bool:
    try:
        await _health(address)
    except grpc.aio.AioRpcError:
        return False
    return True


@pytest.mark.parametrize("workers", [1, 2])
def test_the_soft_limit_is_raised_to_the_hard_one(workers: int) -> None:
    command = ["bash", "-c", 'ulimit -Sn 200; ulimit -Hn 4000; exec "$0" -m chatrpc_server "$@"', sys.executable]
    arguments = ["--log.format=json", f"--workers={workers}", "--limits.max-in-flight=3800"]
    with running("serve", *ANY_PORTS, *arguments, command=command, OPENAI_API_KEY="sk-none") as serve:
        pids = [serve.log("serving")["pid"] for _ in range(workers)]
        for pid in pids:
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (4000, 4000)
    assert not [line for line in serve.lines if "descriptor_limit_low" in line]


FULL = """
import asyncio, os, resource
from chatrpc_server.process import descriptors

resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
descriptors.reserve.hold()

async def main():
    watching = asyncio.create_task(descriptors.watch())
    try:
        while True:
            os.dup(0)
    except OSError:
        pass
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(0.01)
            try:
                os.dup(0)
                break
            except OSError:
                continue
    try:
        descriptors.reserve.require()
    except OSError as error:
        print(error.strerror)
    watching.cancel()

asyncio.run(main())
"""


def test_descriptors_are_released_also_if_no_call_needs_one() -> None:
    """gRPC's core accepts connections, and reports to nothing that it has no descriptor for them."""
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "Too many open files\n"
    assert "no file descriptor is left" in done.stderr
