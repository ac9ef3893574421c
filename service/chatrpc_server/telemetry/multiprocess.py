"""Metrics of several worker processes: each writes files in one folder, and one exporter serves their sums.

This is prometheus_client's multiprocess mode with the worker number in place of the process id. A restarted worker
therefore continues its predecessor's files. Counts survive even SIGKILL, because the files are memory-mapped, and the
number of files is bounded. Single processes keep two features that this mode lacks: exemplars, and the collectors of
Python's garbage collector.
"""

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from chatrpc_server.process.lifecycle import StartError

_IN_FLIGHT = "chatrpc_rpcs_in_flight"
_PARENT = "parent"


def use_worker_files(folder: Path, number: int) -> None:
    """Make all instruments created from now on write to the files of this worker."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # the library reads the folder only from here
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def remove_worker_files(folder: Path, number: int) -> None:
    """Remove the worker's files, and the folder once it is empty. A worker calls this if its parent has exited."""
    for file in folder.glob(f"*_{number}.db"):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


class SharedMetrics:
    """The workers' metrics, as the parent serves them. A context manager that removes the files on exit."""

    def __init__(self, workers: int) -> None:
        """Create the folder. Raises `StartError` if no temporary folder can be created."""
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=f"chatrpc-metrics-{os.getpid()}-"))
        except OSError as error:
            raise StartError(f"workers: cannot create a folder for metrics: {error}; set TMPDIR") from None
        self.registry = CollectorRegistry()
        MultiProcessCollector(self.registry, str(self.folder))  # type: ignore[no-untyped-call]
        PlatformCollector(self.registry)
        self._processes = _ProcessMetrics()
        self.registry.register(self._processes)
        Gauge("chatrpc_workers_desired", "Configured worker processes.", registry=self.registry).set(workers)
        self._running = Gauge("chatrpc_workers_running", "Running worker processes.", registry=self.registry)
        self._unexpected_exits = Counter(
            "chatrpc_worker_unexpected_exits",
            "Worker processes that exited without a stop request.",
            registry=self.registry,
        )

    def started(self, number: int, pid: int) -> None:
        """Count the worker as running, and read the metrics of its process."""
        self._processes.pids[str(number)] = pid
        self._running.inc()

    def exited(self, number: int, *, expected: bool) -> None:
        """Count the exit. The worker's calls in flight have failed: their callers received UNAVAILABLE."""
        self._processes.pids.pop(str(number), None)
        self._running.dec()
        if not expected:
            self._unexpected_exits.inc()
        lost = self._in_flight(number)
        if any(lost.values()):
            self._count_lost(number, lost)
        mark_process_dead(number, str(self.folder))  # type: ignore[no-untyped-call]

    def __enter__(self) -> "SharedMetrics":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _in_flight(self, number: int) -> dict[str, float]:
        """Return the number of the worker's calls in flight by method."""
        files = glob.glob(f"{self.folder}/gauge_livesum_{number}.db")
        families = MultiProcessCollector.merge(files, accumulate=False)  # type: ignore[no-untyped-call]
        samples = [sample for family in families if family.name == _IN_FLIGHT for sample in family.samples]
        return {sample.labels["grpc_method"]: sample.value for sample in samples}

    def _count_lost(self, number: int, lost: dict[str, float]) -> None:
        """Count lost calls as handled, and their streams as ended, so that every call is counted exactly once."""
        counters = MmapedDict(f"{self.folder}/counter_{number}.db")  # type: ignore[no-untyped-call]
        try:
            for key, value, _ in list(counters.read_all_values()):  # type: ignore[no-untyped-call]
                _, name, labels, _ = json.loads(key)
                more = 0.0
                if name == "grpc_server_handled_total" and labels["grpc_code"] == "Unavailable":
                    more = lost.get(labels["grpc_method"], 0.0)
                if name == "chatrpc_streams_ended_total" and labels["outcome"] == "worker_exited":
                    more = sum(calls for method, calls in lost.items() if method.endswith("Stream"))
                if more:
                    counters.write_value(key, value + more, 0.0)  # type: ignore[no-untyped-call]
        finally:
            counters.close()  # type: ignore[no-untyped-call]


class _ProcessMetrics(Collector):
    """The kernel's metrics of each process, by worker."""

    def __init__(self) -> None:
        self.pids = {_PARENT: os.getpid()}

    def collect(self) -> Iterator[Metric]:
        """Yield metric families with one sample per process."""
        families: dict[str, Metric] = {}
        for worker, pid in list(self.pids.items()):
            with suppress(OSError):  # the process has just exited
                for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                    known = families.setdefault(
                        family.name, Metric(family.name, family.documentation, family.type, family.unit)
                    )
                    known.samples += [sample._replace(labels={"worker": worker}) for sample in family.samples]
        yield from families.values()
