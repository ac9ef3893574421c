"""A full disk under the metrics of the workers: calls are served, and the operator sees that metrics are missing."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from support import outcome, request
from support.process import ANY_PORTS, running


@contextmanager
def _disk(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of this size. Only root can mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _value(address: str, name: str) -> float:
    with urlopen(address, timeout=30) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


async def _call(listen: str, calls: int) -> set[grpc.StatusCode]:
    codes = set()
    for _ in range(calls):  # each over its own connection, so that they reach both workers
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        async with grpc.aio.insecure_channel(listen, options) as channel:
            codes.add((await outcome(ChatCompletionServiceStub(channel).CreateChatCompletion(request()))).code)
    return codes


# Two workers allocate about 900 KiB. Full from the start, after the first files, after one worker, in the last file.
@pytest.mark.parametrize("kib", [192, *(pytest.param(kib, marks=pytest.mark.slow) for kib in (8, 64, 320, 576, 704))])
@pytest.mark.timeout(120)
async def test_calls_are_served(kib: int, echo: Echo, tmp_path: Path) -> None:
    with _disk(tmp_path / "disk", kib) as disk:
        environ = {"OPENAI_BASE_URL": echo.base_url, "TMPDIR": str(disk)}
        with running("serve", "--workers=2", *ANY_PORTS, **environ) as process:
            metrics = (await asyncio.to_thread(process.log, "metrics_serving"))["metrics"]
            listen = (await asyncio.to_thread(process.log, "serving"))["listen"]
            await asyncio.to_thread(process.log, "workers_started")
            assert await _call(listen, 20) == {grpc.StatusCode.OK}
            incomplete = {line for line in process.written() if "metrics_not_shared" in line}
            assert 0 < len(incomplete) <= 2, "once for each worker"
            assert all("No space left on device" in line for line in incomplete)
            assert _value(metrics, "chatrpc_workers_metrics_incomplete") == len(incomplete)
            assert _value(metrics, "chatrpc_workers_running") == 2
            assert _value(metrics, "chatrpc_worker_unexpected_exits_total") == 0
            process.signal()
            assert await asyncio.to_thread(process.wait) == 0
            assert "SIGBUS" not in process.output


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_disk_that_fills_later(echo: Echo, tmp_path: Path) -> None:
    """The files have their space already, so every call is counted. A new worker continues the file of the old one."""
    with _disk(tmp_path / "disk", 8192) as disk:
        environ = {"OPENAI_BASE_URL": echo.base_url, "TMPDIR": str(disk)}
        with running("serve", "--workers=2", *ANY_PORTS, **environ) as process:
            metrics = (await asyncio.to_thread(process.log, "metrics_serving"))["metrics"]
            serving = await asyncio.to_thread(process.log, "serving")
            await asyncio.to_thread(process.log, "workers_started")
            size = os.statvfs(disk)
            (disk / "other").write_bytes(bytes(size.f_bavail * size.f_bsize))
            assert await _call(serving["listen"], 20) == {grpc.StatusCode.OK}
            os.kill(serving["pid"], signal.SIGKILL)
            assert (await asyncio.to_thread(process.log, "worker_exited"))["cause"] == "SIGKILL"
            await asyncio.to_thread(process.log, "worker_restarted")
            assert await _call(serving["listen"], 20) == {grpc.StatusCode.OK}
            assert _value(metrics, "grpc_server_started_total") == 40
            assert _value(metrics, "chatrpc_worker_unexpected_exits_total") == 1
            process.signal()
            assert await asyncio.to_thread(process.wait) == 0


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_no_folder_for_metrics(echo: Echo, tmp_path: Path) -> None:
    """No folder of the system accepts files."""
    no_folder = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/dev/null']"
    (tmp_path / "sitecustomize.py").write_text(no_folder)
    environ = {"OPENAI_BASE_URL": echo.base_url, "PYTHONPATH": str(tmp_path)}
    with running("serve", "--workers=2", *ANY_PORTS, **environ) as process:
        assert "No usable temporary directory" in (await asyncio.to_thread(process.log, "metrics_not_shared"))["cause"]
        metrics = (await asyncio.to_thread(process.log, "metrics_serving"))["metrics"]
        listen = (await asyncio.to_thread(process.log, "serving"))["listen"]
        await asyncio.to_thread(process.log, "workers_started")
        assert await _call(listen, 4) == {grpc.StatusCode.OK}
        assert _value(metrics, "chatrpc_workers_metrics_incomplete") == 2
        process.signal()
        assert await asyncio.to_thread(process.wait) == 0
