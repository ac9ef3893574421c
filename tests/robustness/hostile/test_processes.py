"""Processes that are stopped, hung up or suspended from outside."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from support import process as processes
from support.process import ANY_PORTS, Process, running

TIMEOUT_SECONDS = 6
"""A healthy worker must be silent for this time before it is killed, also on a slow machine."""


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SECONDS", 60.0)


@contextmanager
def _serving(heartbeat_timeout_seconds: int = TIMEOUT_SECONDS) -> Iterator[Process]:
    """A parent and two workers."""
    heartbeat = f"--worker-heartbeat-timeout-seconds={heartbeat_timeout_seconds}"
    with running("serve", "--workers=2", *ANY_PORTS, heartbeat) as process:
        yield process


def _started(process: Process) -> list[int]:
    """Wait until all workers serve; return their process ids by worker number."""
    serving = sorted((process.log("serving") for _ in range(2)), key=lambda line: line["worker"])
    process.log("workers_started")
    return [line["pid"] for line in serving]


def _log_of(worker: int, process: Process, event: str) -> dict[str, Any]:
    """Return the next log line of this event that names this worker."""
    while (line := process.log(event))["worker"] != worker:
        pass
    return line


def test_a_worker_that_hangs_is_replaced() -> None:
    """The other worker can be replaced too, if the machine is very slow."""
    with _serving(heartbeat_timeout_seconds=2) as process:
        metrics = process.log("metrics_serving")["metrics"]
        pid = _started(process)[0]
        os.kill(pid, signal.SIGSTOP)
        assert _log_of(0, process, "worker_unresponsive")["heartbeat_timeout_seconds"] == 2
        assert _log_of(0, process, "worker_exited")["cause"] == "no response for 2 s"
        assert _log_of(0, process, "serving")["pid"] != pid
        assert not Path(f"/proc/{pid}").exists()
        with urlopen(metrics, timeout=30) as response:
            exits = re.search(r"^chatrpc_worker_unexpected_exits_total (\S+)$", response.read().decode(), re.MULTILINE)
        assert exits
        assert float(exits[1]) >= 1
        process.signal()
        assert process.wait() == 0


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("whole", [False, True], ids=["parent", "all"])
def test_a_suspended_machine_kills_no_worker(*, whole: bool) -> None:
    """The parent counts only the time in which it runs itself."""
    with _serving() as started:
        pids = _started(started)
        _suspend(started, pids, whole=whole)


def _suspend(started: Process, pids: list[int], *, whole: bool) -> None:
    group = [started.popen.pid, *(pids if whole else [])]
    for pid in group:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2 * TIMEOUT_SECONDS)  # the time of the suspension, not a wait for an event
    for pid in group:
        os.kill(pid, signal.SIGCONT)
    # A kill after this proves that the heartbeat still works, and that no other kill came before it.
    time.sleep(TIMEOUT_SECONDS)
    os.kill(pids[1], signal.SIGSTOP)
    assert started.log("worker_unresponsive")["worker"] == 1
    assert "worker_exited" not in started.output
    assert Path(f"/proc/{pids[0]}").exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_hangups_end_no_worker() -> None:
    """A terminal's or a supervisor's SIGHUP to the whole group, while the workers start, serve and are replaced."""
    with _serving(heartbeat_timeout_seconds=30) as process:
        _hang_up(process)


def _hang_up(started: Process) -> None:
    pids = []
    while "workers_started" not in (line := started.line("event")):
        os.killpg(started.popen.pid, signal.SIGHUP)
        if '"event":"serving"' in line:
            pids.append(json.loads(line)["pid"])
    os.killpg(started.popen.pid, signal.SIGHUP)
    assert "without a signal" in started.log("hangup_ignored")["message"]
    assert "worker_exited" not in started.output
    os.kill(pids[0], signal.SIGKILL)
    assert started.log("worker_exited")["cause"] == "SIGKILL"
    while '"event":"serving"' not in started.line("event"):
        os.killpg(started.popen.pid, signal.SIGHUP)
    os.killpg(started.popen.pid, signal.SIGHUP)
    started.log("worker_restarted")
    started.signal()
    assert started.wait() == 0
    assert started.output.count('"event":"worker_exited"') == 1


@pytest.mark.parametrize(
    ("arguments", "ready"),
    [
        (["serve", *ANY_PORTS], '"event":"serving"'),
        (["echo", "--listen=127.0.0.1:0"], "echo serves at"),
    ],
    ids=["serve", "echo"],
)
def test_a_hangup_does_not_end_one_process(arguments: list[str], ready: str) -> None:
    """Not in the second of its imports either."""
    with running(*arguments) as process:
        while not _ignores_hangups(process.popen.pid):
            time.sleep(0.001)
        process.signal(signal.SIGHUP)
        process.line(ready)
        process.signal(signal.SIGHUP)
        if arguments[0] != "echo":
            process.log("hangup_ignored")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, "SIGTERM ended it, not SIGHUP"


def test_a_demo_ends_with_its_terminal() -> None:
    with running("demo", "--keep", *ANY_PORTS) as process:
        process.line("Serving on")
        process.signal(signal.SIGHUP)
        assert process.wait() == 0


def _ignores_hangups(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (ignored,) = (line.split()[1] for line in lines if line.startswith("SigIgn:"))
    return bool(int(ignored, 16) & 1 << (signal.SIGHUP - 1))
