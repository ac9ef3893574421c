"""Metrics of several worker processes: each writes files in one folder, and one exporter serves their sums.

This is prometheus_client's multiprocess mode with the worker number in place of the process id. A restarted worker
therefore continues its predecessor's files. Counts survive even SIGKILL, because the files are memory-mapped, and the
number of files is bounded. The space of each file is allocated before it is used, because a write into a map without
space ends the process with SIGBUS. A worker without space keeps its metrics for itself, and serves.

Single processes keep two features that this mode lacks: exemplars, and the collectors of Python's garbage collector.
"""

import errno
import glob
import json
import logging
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

log = logging.getLogger("chatrpc.workers")

_IN_FLIGHT = "chatrpc_rpcs_in_flight"
_PARENT = "parent"
_NO_ALLOCATION = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF}
"""Errors of file systems or C libraries that cannot allocate. EBADF: glibc cannot if the file is open for appending."""
_INITIAL_BYTES = 1 << 16
"""The library's first size of a file. It doubles the size when the file is full."""
_RECORD_BYTES = 32
"""Largest size of a series in a file in addition to its key."""
_NO_FOLDER = Path(os.devnull, "metrics")
"""A folder in which no file can be created."""
INCOMPLETE = "metrics_not_shared"
"""Notice of a worker whose metrics the parent does not see, at least in part."""


def use_worker_files(folder: Path, number: int, notify: Callable[[str], None] = lambda _: None) -> None:
    """Make all instruments created from now on write to the files of this worker. `notify` gets `INCOMPLETE` once."""

    class Files(_AllocatedDict):
        on_first_failure = staticmethod(partial(notify, INCOMPLETE))

    setattr(values, "MmapedDict", Files)  # noqa: B010  # the library has no parameter for it
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # the library reads the folder only from here
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def remove_worker_files(folder: Path, number: int) -> None:
    """Remove the worker's files, and the folder once it is empty. A worker calls this if its parent has exited."""
    for file in folder.glob(f"*_{number}.db*"):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


class _AllocatedDict(MmapedDict):
    """The library's map of a file, with its space allocated ahead. Without space, series are in private memory."""

    on_first_failure: Callable[[], None]
    has_failed = False
    _f: Any = None

    def __init__(self, filename: str) -> None:
        self._private: dict[str, tuple[float, float]] = {}
        try:
            _prepare(filename)
            super().__init__(filename)  # type: ignore[no-untyped-call]
            if not 0 < self._used <= self._capacity:
                raise ValueError("the file of the previous process is damaged")
        except Exception as error:  # of any kind, because metrics must not stop a worker
            self._report(error)
            if self._f:
                self._f.close()
            self._f = None
            self._capacity, self._used, self._positions = 0, 0, {}

    def read_value(self, key: str) -> tuple[float, float]:
        """Return value and timestamp of a series; create it if it is new. Called once for each series."""
        if key not in self._positions and key not in self._private and not self._has_space(key):
            self._private[key] = (0.0, 0.0)
            # Only this object pays for a check at each write.
            self.write_value = self._write_private_value  # type: ignore[method-assign]
        if key in self._private:
            return self._private[key]
        return super().read_value(key)  # type: ignore[no-any-return, no-untyped-call]

    def _write_private_value(self, key: str, value: float, timestamp: float) -> None:
        if key in self._private:
            self._private[key] = (value, timestamp)
        else:
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def _has_space(self, key: str) -> bool:
        """Return whether a new series fits into the file, which grows if necessary."""
        end = self._used + len(key.encode()) + _RECORD_BYTES
        try:
            while self._f and end > self._capacity:
                _allocate(self._f.fileno(), self._capacity, 2 * self._capacity)
                self._m = mmap.mmap(self._f.fileno(), 2 * self._capacity)
                self._capacity *= 2
        except OSError as error:
            self._report(error)
        return bool(end <= self._capacity)

    def _report(self, error: Exception) -> None:
        """Report the first failure of this process."""
        if not self.has_failed:
            type(self).has_failed = True
            log.error(
                "metrics of this worker are incomplete, because their files cannot grow; calls are served",
                extra={"event": "metrics_not_shared", "cause": str(error)},
            )
            self.on_first_failure()


def _prepare(filename: str) -> None:
    """Create the file with its first space, or allocate the missing space of an existing one. Raises OSError."""
    new = f"{filename}.new"  # renamed when complete, because the parent reads each file that it finds
    name = filename if Path(filename).exists() else new
    try:
        with open(name, "a+b") as file:
            _allocate(file.fileno(), 0, max(_INITIAL_BYTES, os.fstat(file.fileno()).st_size))
        if name == new:
            Path(new).rename(filename)
    except OSError:
        Path(new).unlink(missing_ok=True)
        raise


def _allocate(file: int, start: int, end: int) -> None:
    """Allocate the space of a part of a file without changing its content. Raises OSError."""
    try:
        os.posix_fallocate(file, start, end - start)
    except OSError as error:
        if error.errno not in _NO_ALLOCATION:
            raise
        # This file system or C library cannot allocate. Write zeros where the file has no content yet.
        size = os.fstat(file).st_size
        if size < end:
            os.pwrite(file, bytes(end - size), size)


class SharedMetrics:
    """The workers' metrics, as the parent serves them. A context manager that removes the files on exit."""

    def __init__(self, workers: int) -> None:
        """Create the folder. If that fails, no metrics are shared."""
        self.registry = CollectorRegistry()
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=f"chatrpc-metrics-{os.getpid()}-"))
            MultiProcessCollector(self.registry, str(self.folder))  # type: ignore[no-untyped-call]
        except OSError as error:
            self.folder = _NO_FOLDER
            log.error(
                "metrics of the workers are missing, because no folder can be created; set TMPDIR",
                extra={"event": "metrics_not_shared", "cause": str(error)},
            )
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

        self._incomplete = Gauge(
            "chatrpc_workers_metrics_incomplete",
            "Running workers whose metrics are incomplete for lack of space.",
            registry=self.registry,
        )
        self._incomplete_numbers = set[int]()
        self._incomplete.set_function(lambda: len(self._incomplete_numbers))

    def notified(self, number: int, notice: str) -> None:
        """Record that the worker's metrics are incomplete."""
        if notice == INCOMPLETE:
            self._incomplete_numbers.add(number)

    def started(self, number: int, pid: int) -> None:
        """Count the worker as running, and read the metrics of its process."""
        self._processes.pids[str(number)] = pid
        self._running.inc()

    def exited(self, number: int, *, expected: bool) -> None:
        """Count the exit. The worker's calls in flight have failed: their callers received UNAVAILABLE."""
        self._processes.pids.pop(str(number), None)
        self._running.dec()
        self._incomplete_numbers.discard(number)
        if not expected:
            self._unexpected_exits.inc()
        lost = self._in_flight(number)
        if any(lost.values()) and Path(f"{self.folder}/counter_{number}.db").exists():
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
