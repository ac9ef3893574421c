"""`serve --workers N`: one port, and one end; in between each worker has a fate of its own."""

import asyncio
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from e2e.process import ANY_PORTS, Process, run, running

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_server.echo import Echo
from support import Outcome, outcome, request

LONG = request(model="echo:pieces=25,pace=0.1")
LONGER = request(model="echo:pieces=250,pace=0.1")
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
Code = grpc.StatusCode


class Service:
    """The parent, and its two workers as their first lines tell of them."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.workers = sorted((process.log("serving") for _ in range(2)), key=lambda line: line["worker"])
        self.listen = self.workers[0]["listen"]
        process.log("workers started")

    def pids(self) -> set[int]:
        """Of the workers that live."""
        return {worker["pid"] for worker in self.workers if Path(f"/proc/{worker['pid']}").exists()}


@pytest.fixture
def workers(echo: Echo) -> Iterator[Service]:
    with running("serve", "--workers=2", *ANY_PORTS, OPENAI_BASE_URL=echo.base_url) as process:
        yield Service(process)


def _holds(worker: dict[str, Any]) -> bool:
    """Whether this worker has a call, by its metrics."""
    with urlopen(worker["metrics"], timeout=5) as response:
        lines = response.read().decode().splitlines()
    return any(line.startswith("chatrpc_rpcs_in_flight{") and not line.endswith(" 0.0") for line in lines)


@asynccontextmanager
async def calls_on_both(service: Service, call: Any = LONG) -> AsyncIterator[list[asyncio.Task[Outcome]]]:
    """Streams of 2.5 seconds, each over a connection of its own, so many that every worker has one."""
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        calls = []
        while not all([await asyncio.to_thread(_holds, worker) for worker in service.workers]):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(service.listen, OWN_CONNECTION))
            stream = ChatCompletionServiceStub(channel).CreateChatCompletionStream(call)
            calls.append(asyncio.create_task(outcome(stream)))
            await stream.initial_metadata()
        yield calls


def _codes(outcomes: list[Outcome]) -> set[grpc.StatusCode]:
    return {ended.code for ended in outcomes}


async def test_one_port_and_one_end(workers: Service) -> None:
    async with calls_on_both(workers) as calls:
        workers.process.signal(signal.SIGTERM)
        assert _codes(await asyncio.gather(*calls)) == {Code.OK}, "all drain"
        assert await asyncio.to_thread(workers.process.wait) == 0
    assert not workers.pids()


async def test_a_second_signal_ends_all_at_once(workers: Service) -> None:
    async with calls_on_both(workers, LONGER) as calls:
        workers.process.signal(signal.SIGTERM)
        await asyncio.to_thread(workers.process.log, "draining")
        workers.process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(workers.process.wait) == 0
        assert _codes(await asyncio.gather(*calls)) == {Code.UNAVAILABLE}
    assert not workers.pids()


async def test_ctrl_c_reaches_all_processes_and_they_drain(workers: Service) -> None:
    async with calls_on_both(workers) as calls:
        os.killpg(workers.process.popen.pid, signal.SIGINT)
        assert _codes(await asyncio.gather(*calls)) == {Code.OK}
        assert await asyncio.to_thread(workers.process.wait) == 0
    assert "Traceback" not in workers.process.output


async def test_a_crash_costs_only_the_calls_it_held(workers: Service) -> None:
    async with calls_on_both(workers) as calls:
        os.kill(workers.workers[0]["pid"], signal.SIGKILL)
        outcomes = await asyncio.gather(*calls)
        assert _codes(outcomes) == {Code.OK, Code.UNAVAILABLE}
    ended = workers.process.log("a worker ended")
    assert (ended["worker"], ended["how"], ended["restart_in_seconds"]) == (0, "SIGKILL", 0.5)
    again = workers.process.log("serving")
    assert (again["worker"], again["listen"]) == (0, workers.listen)
    workers.process.log("a worker started again")
    os.kill(again["pid"], signal.SIGKILL)
    assert workers.process.log("a worker ended")["restart_in_seconds"] == 1.0, "and then it takes its time"
    workers.workers[0] = workers.process.log("serving")
    workers.process.log("a worker started again")
    async with calls_on_both(workers) as calls:
        workers.process.signal(signal.SIGTERM)
        assert _codes(await asyncio.gather(*calls)) == {Code.OK}, "the new one has its share"
    assert await asyncio.to_thread(workers.process.wait) == 0


async def test_a_signal_to_one_worker_lets_it_drain(workers: Service) -> None:
    async with calls_on_both(workers) as calls:
        for _ in range(2):  # a second one is no second word of the parent's
            os.kill(workers.workers[1]["pid"], signal.SIGTERM)
        assert _codes(await asyncio.gather(*calls)) == {Code.OK}
    ended = workers.process.log("a worker ended")
    assert (ended["worker"], ended["how"]) == (1, "exit code 0")
    workers.process.log("a worker started again")


async def test_a_worker_that_does_not_drain_is_killed(echo: Echo) -> None:
    with running(
        "serve", "--workers=2", *ANY_PORTS, "--drain.grace-seconds=0", OPENAI_BASE_URL=echo.base_url
    ) as process:
        service = Service(process)
        os.kill(service.workers[0]["pid"], signal.SIGSTOP)
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
        assert not service.pids()


async def test_what_cannot_be_started_again_is_tried_again(workers: Service) -> None:
    parent = workers.process.popen.pid
    limits = resource.prlimit(parent, resource.RLIMIT_NOFILE)
    resource.prlimit(parent, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{parent}/fd")), limits[1]))
    os.kill(workers.workers[0]["pid"], signal.SIGRTMIN + 1)
    ended = await asyncio.to_thread(workers.process.log, "a worker ended")
    assert ended["how"] == f"signal {signal.SIGRTMIN + 1}"
    assert "Too many open files" in (await asyncio.to_thread(workers.process.log, "a worker ended"))["how"]
    resource.prlimit(parent, resource.RLIMIT_NOFILE, limits)
    await asyncio.to_thread(workers.process.log, "a worker started again")
    workers.process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(workers.process.wait) == 0
    assert "Traceback" not in workers.process.output


async def test_workers_do_not_outlive_their_parent(workers: Service) -> None:
    async with calls_on_both(workers) as calls:
        workers.process.popen.kill()
        assert _codes(await asyncio.gather(*calls)) == {Code.OK}, "they drain"
    async with asyncio.timeout(10):
        while workers.pids():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["alone", "with-workers"])
async def test_nobody_else_gets_the_port(workers: Service, how: str) -> None:
    more = ["--workers=2"] if how == "with-workers" else []
    result = await asyncio.to_thread(run, "serve", *more, *ANY_PORTS, f"--listen={workers.listen}")
    assert result.returncode == 1
    assert result.stderr == f"chatrpc-server: listen: cannot listen on {workers.listen}: Address already in use\n"


def test_a_worker_that_cannot_start_ends_all() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        # The first worker gets the port below, the second this one.
        result = run("serve", "--workers=2", *ANY_PORTS, f"--metrics-listen=127.0.0.1:{port - 1}")
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    told = f"chatrpc-server: metrics_listen: cannot listen on 127.0.0.1:{port}: Address already in use"
    assert [line for line in lines if not line.startswith("{")] == [told], "told once, and not as a traceback"


def test_health_of_any_worker() -> None:
    with running("serve", "--workers=2", *ANY_PORTS, "--health-listen=127.0.0.1:0") as process:
        health = process.log("serving")["health"]
        process.log("workers started")
        result = run("healthcheck", f"--health-listen={health}")
        assert (result.returncode, result.stdout) == (0, "SERVING\n")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
