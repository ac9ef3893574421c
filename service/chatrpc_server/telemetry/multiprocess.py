"""One truth for several processes: each keeps its values in files of one folder, and one exporter shows their sums.

This is prometheus_client's multiprocess mode with the number of a worker in place of its process id. So a worker that
is started again goes on where the one before it ended: no count is lost, not even by SIGKILL, since the files are
mapped memory; and there are never more files than workers. What that mode cannot do stays with single processes:
exemplars, and the collectors of Python's garbage collector.
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


def join(folder: Path, number: int) -> None:
    """From now on new instruments of this process are those of the worker with this number."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # there is no other way to tell the library
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def leave(folder: Path, number: int) -> None:
    """For a worker whose parent is gone: takes its files away, and the folder if it is the last."""
    for file in folder.glob(f"*_{number}.db"):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


class SharedMetrics:
    """The workers' metrics, as their parent keeps them; as a context it takes the files away at its end."""

    def __init__(self, workers: int) -> None:
        """Raises `StartError` if there is no place for temporary files."""
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=f"chatrpc-metrics-{os.getpid()}-"))
        except OSError as error:
            raise StartError(f"workers: their metrics need a folder for temporary files (TMPDIR): {error}") from None
        self.registry = CollectorRegistry()
        MultiProcessCollector(self.registry, str(self.folder))  # type: ignore[no-untyped-call]
        PlatformCollector(self.registry)
        self._processes = _Processes()
        self.registry.register(self._processes)
        Gauge("chatrpc_workers_desired", "Worker processes that are meant to be.", registry=self.registry).set(workers)
        self._running = Gauge("chatrpc_workers_running", "Worker processes there are.", registry=self.registry)
        self._ended = Counter(
            "chatrpc_worker_unexpected_exits",
            "Worker processes that ended though nobody had told them.",
            registry=self.registry,
        )

    def started(self, number: int, pid: int) -> None:
        """There is a process for this worker."""
        self._processes.pids[str(number)] = pid
        self._running.inc()

    def ended(self, number: int, *, expected: bool) -> None:
        """There is none any more. Its calls in flight have ended with it: their callers see UNAVAILABLE."""
        self._processes.pids.pop(str(number), None)
        self._running.dec()
        if not expected:
            self._ended.inc()
        lost = self._in_flight(number)
        if any(lost.values()):
            self._book(number, lost)
        mark_process_dead(number, str(self.folder))  # type: ignore[no-untyped-call]

    def __enter__(self) -> "SharedMetrics":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _in_flight(self, number: int) -> dict[str, float]:
        """The calls that this worker held, by method."""
        files = glob.glob(f"{self.folder}/gauge_livesum_{number}.db")
        families = MultiProcessCollector.merge(files, accumulate=False)  # type: ignore[no-untyped-call]
        samples = [sample for family in families if family.name == _IN_FLIGHT for sample in family.samples]
        return {sample.labels["grpc_method"]: sample.value for sample in samples}

    def _book(self, number: int, lost: dict[str, float]) -> None:
        """Counts lost calls as handled, and streams as ended: whatever the end of a call, it is counted once."""
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


class _Processes(Collector):
    """The metrics that the kernel has of each process, by worker."""

    def __init__(self) -> None:
        self.pids = {_PARENT: os.getpid()}

    def collect(self) -> Iterator[Metric]:
        """A family with a sample for each process."""
        families: dict[str, Metric] = {}
        for worker, pid in list(self.pids.items()):
            with suppress(OSError):  # it has just ended
                for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                    known = families.setdefault(
                        family.name, Metric(family.name, family.documentation, family.type, family.unit)
                    )
                    known.samples += [sample._replace(labels={"worker": worker}) for sample in family.samples]
        yield from families.values()
