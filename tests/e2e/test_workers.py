"""`serve --workers N`: one port, common start and stop, and independent crashes."""

import asyncio
import json
import os
import resource
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from support import Outcome, outcome, request
from support.process import ANY_PORTS, Process, run, running

LONG = request(model="echo:pieces=25,pace=0.1")
LONGER = request(model="echo:pieces=250,pace=0.1")
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
Code = grpc.StatusCode
ESTABLISHED = "01"
"""In /proc/net/tcp."""


class Service:
    """The parent and its two workers, known from their first log lines."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._metrics = process.log("metrics_serving")["metrics"]
        self.workers = sorted((process.log("serving") for _ in range(2)), key=lambda line: line["worker"])
        self.listen = self.workers[0]["listen"]
        process.log("workers_started")

    def pids(self) -> set[int]:
        """Return the process ids of running workers."""
        return {worker["pid"] for worker in self.workers if Path(f"/proc/{worker['pid']}").exists()}

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels over all workers."""
        with urlopen(self._metrics, timeout=5) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        assert len({tuple(sorted(sample.labels.items())) for sample in samples}) == len(samples), "no duplicate series"
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def metrics_folders(self) -> list[Path]:
        """Return the folders of the workers' metrics."""
        return [*Path(tempfile.gettempdir()).glob(f"chatrpc-metrics-{self.process.popen.pid}-*")]

    def holds(self, worker: dict[str, Any]) -> int:
        """Return the number of the worker's connections from callers; here one per call."""
        port = f"{int(self.listen.rpartition(':')[2]):04X}"
        inodes = {
            fields[9]
            for table in ("tcp", "tcp6")  # grpc uses IPv6 sockets for IPv4 too
            for line in Path(f"/proc/{worker['pid']}/net/{table}").read_text().splitlines()[1:]
            if (fields := line.split())[1].endswith(f":{port}") and fields[3] == ESTABLISHED
        }
        files = Path(f"/proc/{worker['pid']}/fd").iterdir()
        return sum(os.readlink(file).removeprefix("socket:[").removesuffix("]") in inodes for file in files)


@pytest.fixture
def workers(echo: Echo) -> Iterator[Service]:
    with running("serve", "--workers=2", *ANY_PORTS, OPENAI_BASE_URL=echo.base_url) as process:
        yield Service(process)


@asynccontextmanager
async def calls_on_both(service: Service, call: Any = LONG) -> AsyncIterator[list[asyncio.Task[Outcome]]]:
    """Start streams of 2.5 seconds, each over its own connection, until every worker has one."""
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        calls = []
        while not all(service.holds(worker) for worker in service.workers):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(service.listen, OWN_CONNECTION))
            stream = ChatCompletionServiceStub(channel).CreateChatCompletionStream(call)
            calls.append(asyncio.create_task(outcome(stream)))
            await stream.initial_metadata()
        yield calls


def _codes(outcomes: list[Outcome]) -> set[grpc.StatusCode]:
    return {each.code for each in outcomes}


async def test_all_drain_on_sigterm(workers: Service) -> None:
    async with calls_on_both(workers) as calls:
        workers.process.signal(signal.SIGTERM)
        assert _codes(await asyncio.gather(*calls)) == {Code.OK}, "all drain"
        assert await asyncio.to_thread(workers.process.wait) == 0
    assert not workers.pids()


async def test_a_second_signal_stops_all_at_once(workers: Service) -> None:
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


async def test_a_crash_fails_only_its_own_calls(workers: Service) -> None:
    async with calls_on_both(workers) as calls:
        os.kill(workers.workers[0]["pid"], signal.SIGKILL)
        outcomes = await asyncio.gather(*calls)
        assert _codes(outcomes) == {Code.OK, Code.UNAVAILABLE}
    ended = workers.process.log("worker_exited")
    assert (ended["worker"], ended["cause"], ended["restart_in_seconds"]) == (0, "SIGKILL", 0.5)
    again = workers.process.log("serving")
    assert (again["worker"], again["listen"]) == (0, workers.listen)
    workers.process.log("worker_restarted")
    os.kill(again["pid"], signal.SIGKILL)
    assert workers.process.log("worker_exited")["restart_in_seconds"] == 1.0, "the pause doubles"
    workers.workers[0] = workers.process.log("serving")
    workers.process.log("worker_restarted")
    async with calls_on_both(workers) as calls:
        workers.process.signal(signal.SIGTERM)
        assert _codes(await asyncio.gather(*calls)) == {Code.OK}, "the new one receives calls"
    assert await asyncio.to_thread(workers.process.wait) == 0


async def test_a_signal_to_one_worker_makes_it_drain(workers: Service) -> None:
    async with calls_on_both(workers) as calls:
        for _ in range(2):  # a second signal is not the parent's second stop request
            os.kill(workers.workers[1]["pid"], signal.SIGTERM)
        assert _codes(await asyncio.gather(*calls)) == {Code.OK}
    ended = workers.process.log("worker_exited")
    assert (ended["worker"], ended["cause"]) == (1, "exit code 0")
    workers.process.log("worker_restarted")


async def test_a_worker_that_does_not_drain_is_killed(echo: Echo) -> None:
    with running(
        "serve", "--workers=2", *ANY_PORTS, "--drain.grace-seconds=0", OPENAI_BASE_URL=echo.base_url
    ) as process:
        service = Service(process)
        os.kill(service.workers[0]["pid"], signal.SIGSTOP)
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
        assert not service.pids()


async def test_a_failed_restart_is_retried(workers: Service) -> None:
    parent = workers.process.popen.pid
    limits = resource.prlimit(parent, resource.RLIMIT_NOFILE)
    resource.prlimit(parent, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{parent}/fd")), limits[1]))
    os.kill(workers.workers[0]["pid"], signal.SIGRTMIN + 1)
    ended = await asyncio.to_thread(workers.process.log, "worker_exited")
    assert ended["cause"] == f"signal {signal.SIGRTMIN + 1}"
    assert "Too many open files" in (await asyncio.to_thread(workers.process.log, "worker_exited"))["cause"]
    resource.prlimit(parent, resource.RLIMIT_NOFILE, limits)
    await asyncio.to_thread(workers.process.log, "worker_restarted")
    workers.process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(workers.process.wait) == 0
    assert "Traceback" not in workers.process.output


async def test_workers_do_not_outlive_their_parent(workers: Service) -> None:
    async with calls_on_both(workers) as calls:
        workers.process.popen.kill()
        assert _codes(await asyncio.gather(*calls)) == {Code.OK}, "they drain"
    async with asyncio.timeout(10):
        while workers.pids() or workers.metrics_folders():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("mode", ["alone", "with-workers"])
async def test_no_other_process_gets_the_port(workers: Service, mode: str) -> None:
    more = ["--workers=2"] if mode == "with-workers" else []
    result = await asyncio.to_thread(run, "serve", *more, *ANY_PORTS, f"--listen={workers.listen}")
    assert result.returncode == 1
    assert (
        result.stderr
        == f"chatrpc-server: listen: cannot listen on {workers.listen}: Address already in use; use a free one\n"
    )


async def test_metrics_are_summed_and_outlive_a_worker(workers: Service) -> None:
    """A crash loses no count, and the calls that it fails are counted too."""
    (folder,) = workers.metrics_folders()
    async with calls_on_both(workers) as calls:
        held = workers.holds(workers.workers[0])
        async with asyncio.timeout(10):
            while workers.value("chatrpc_rpcs_in_flight") < len(calls):
                await asyncio.sleep(0.05)
        os.kill(workers.workers[0]["pid"], signal.SIGKILL)
        await asyncio.gather(*calls)
        await asyncio.to_thread(workers.process.log, "worker_exited")
        assert workers.value("chatrpc_rpcs_in_flight") == 0
        started = workers.value("grpc_server_started_total")
        assert started == len(calls) == workers.value("grpc_server_handled_total")
        assert workers.value("grpc_server_handled_total", grpc_code="Unavailable") == held
        assert workers.value("chatrpc_streams_ended_total", outcome="worker_exited") == held
        assert workers.value("chatrpc_worker_unexpected_exits_total") == 1
        await asyncio.to_thread(workers.process.log, "worker_restarted")
        workers.workers[0] = {"pid": await asyncio.to_thread(_last_serving, workers.process)}
        owners = {path.stem.rpartition("_")[2] for path in folder.iterdir()}
        assert owners == {"0", "1"}, "no file of an exited process"
        assert workers.value("chatrpc_workers_running") == 2 == workers.value("chatrpc_workers_desired")
        for worker in ("0", "1", "parent"):
            assert workers.value("process_resident_memory_bytes", worker=worker) > 1e7
    async with calls_on_both(workers) as more:
        await asyncio.gather(*more)
        async with asyncio.timeout(10):
            while workers.value("grpc_server_handled_total") < len(calls) + len(more):
                await asyncio.sleep(0.05)
    assert workers.value("grpc_server_started_total") == len(calls) + len(more)
    workers.process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(workers.process.wait) == 0
    assert not folder.exists()


def test_all_workers_reload_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "chatrpc.yaml"
    file.write_text("log: {level: info}\n")
    with running("serve", "--workers=2", *ANY_PORTS, f"--config={file}") as process:
        process.log("workers_started")
        file.write_text("log: {level: debug}\nworkers: 3\n")
        changed = [process.log("config_reloaded") for _ in range(2)]
        assert {line["worker"] for line in changed} == {0, 1}
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def _last_serving(process: Process) -> int:
    lines = [json.loads(line) for line in process.lines if line.startswith("{")]
    return int([line for line in lines if line["event"] == "serving"][-1]["pid"])


def test_a_worker_that_cannot_start_stops_all(tmp_path: Path) -> None:
    authorities = tmp_path / "authorities.pem"
    authorities.write_text("nothing")
    result = run("serve", "--workers=2", *ANY_PORTS, f"--upstream.ca-file={authorities}")
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, "reported once, and not as a traceback"
    assert lines[0].startswith(f"chatrpc-server: upstream.ca_file: {authorities}: cannot load certificates: ")


def test_a_metrics_port_in_use_stops_all() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        result = run("serve", "--workers=2", *ANY_PORTS, f"--metrics-listen={address}")
    assert result.returncode == 1
    assert (
        result.stderr
        == f"chatrpc-server: metrics_listen: cannot listen on {address}: Address already in use; use a free one\n"
    )


def test_health_of_any_worker() -> None:
    with running("serve", "--workers=2", *ANY_PORTS, "--health-listen=127.0.0.1:0") as process:
        health = process.log("serving")["health"]
        process.log("workers_started")
        result = run("healthcheck", f"--health-listen={health}")
        assert (result.returncode, result.stdout) == (0, "SERVING\n")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
