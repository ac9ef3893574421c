"""Supervises N worker processes that run the same function: spawns, observes, restarts and stops them.

Workers are spawned, never forked, because gRPC does not survive a fork. This module does not know their function.
They share a port by binding it with SO_REUSEPORT.

Stop requests travel over pipes, not by signals: a terminal or an init system signals all processes at once. A worker
would count its parent's signal as the second one and drop its calls. A closed pipe also shows that the parent exited.

The parent also sends a ping over the pipe, and the worker's event loop responds. A worker that stays silent is killed,
because the kernel continues to give it connections.
"""

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Protocol

from chatrpc_server.process.lifecycle import (
    StartError,
    StopRequests,
    hangups_ignored,
    on_stop_signals,
    stop_signals,
)

log = logging.getLogger("chatrpc.workers")

_SPAWN = get_context("spawn")
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
"""Bounds of the pause between a worker's exit and its restart. The pause doubles each time."""
_STABLE_SECONDS = 60.0
"""If a worker has run for this time, its next restart uses the first pause, because its exit has a new cause."""
_EXIT_SECONDS = 5.0
"""Time for workers to exit, in addition to the drain time. After it they are killed."""

_CHECKS = 10
"""Checks within the longest silence of a worker. Silence counts in checks, so that it excludes the time in which the
parent itself did not run, such as that of a suspended machine."""
_START_FACTOR = 10
"""Longest start of a worker, as a multiple of the longest silence."""

_STARTED, _DRAIN, _EXIT, _PING, _PONG = "started", "drain", "exit", "ping", "pong"


@dataclass(frozen=True, slots=True)
class _Notice:
    """A message from a worker to the observer."""

    text: str


class Parent:
    """The parent process, as a worker sees it."""

    def __init__(self, pipe: "Connection[object, object]") -> None:
        self._pipe = pipe
        self.has_exited = False
        """Whether the parent exited before this worker."""

    def report_started(self) -> None:
        """Report that the worker serves."""
        self._send(_STARTED)

    def notify(self, notice: str) -> None:
        """Send a notice to the parent's observer of the workers."""
        self._send(_Notice(notice))

    def report_failure(self, error: StartError) -> None:
        """Report that the worker cannot start; the parent raises the error."""
        self._send(error)

    def _send(self, message: object) -> None:
        with suppress(OSError):  # the parent has exited; `stop_requests` notices it
            self._pipe.send(message)

    @contextmanager
    def stop_requests(self) -> Iterator[StopRequests]:
        """Receive the parent's stop requests, like `lifecycle.stop_signals`.

        A signal to this process, or the parent's exit, only makes it drain.
        """
        drain, exit_now = asyncio.Event(), asyncio.Event()
        loop, pipe = asyncio.get_running_loop(), self._pipe.fileno()

        def on_message() -> None:
            try:
                message = self._pipe.recv()
            except (EOFError, OSError):
                self.has_exited = True
                loop.remove_reader(pipe)
                message = _DRAIN
            if message == _PING:
                self._send(_PONG)  # never blocks, because the parent sends the next ping only after this
                return
            drain.set()
            if message == _EXIT:
                exit_now.set()

        steps = iter((drain, exit_now))

        async def stop_requested() -> None:
            await next(steps).wait()

        loop.add_reader(pipe, on_message)
        try:
            with on_stop_signals(drain.set):
                yield stop_requested
        finally:
            loop.remove_reader(pipe)


Main = Callable[[int, Parent], int]
"""A worker's main function: worker number (from 0) and parent → exit code. It must be picklable."""


class WorkerObserver(Protocol):
    """The port for observers of worker start and exit events."""

    def started(self, number: int, pid: int) -> None:
        """Record that a process of this worker started."""

    def notified(self, number: int, notice: str) -> None:
        """Record a worker's notice."""

    def exited(self, number: int, *, expected: bool) -> None:
        """Record that the worker's process exited. `expected`: the parent had requested it."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Times after which the parent kills a worker: the drain, and the silence of its event loop."""

    drain_seconds: float
    heartbeat_seconds: float


class Workers:
    """`count` processes that each run `main`, drain in time and never stay silent."""

    def __init__(self, count: int, main: Main, timeouts: Timeouts, observer: WorkerObserver) -> None:
        self._count, self._main, self._timeouts, self._observer = count, main, timeouts, observer
        self._workers: dict[int, _Worker] = {}
        self._never_started = set(range(count))
        self._stopping = asyncio.Event()
        self._failure: StartError | None = None

    async def run(self) -> None:
        """Run the workers until SIGTERM or SIGINT, then let all drain; a second signal makes them exit at once.

        If a worker never starts, stop all and raise `StartError`. If it exits later, restart it without limit, because
        the other workers still serve.
        """
        with stop_signals() as stop_requested:
            stopping = asyncio.create_task(self._stop_on_request(stop_requested))
            try:
                await asyncio.gather(*(self._keep_running(number) for number in range(self._count)))
            finally:
                stopping.cancel()
                self._kill()  # for an error above; workers that have exited are not affected
        if self._failure:
            raise self._failure

    async def _stop_on_request(self, stop_requested: StopRequests) -> None:
        await stop_requested()
        self._stop(_DRAIN)
        await stop_requested()
        self._stop(_EXIT)

    async def _keep_running(self, number: int) -> None:
        """Run one process after another until the workers must stop."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            started = time.monotonic()
            exit_cause = await self._run_one(number)
            if self._stopping.is_set():
                break
            if time.monotonic() - started > _STABLE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            log.error(
                "worker exited unexpectedly; restarting it",
                extra={"event": "worker_exited", "worker": number, "cause": exit_cause, "restart_in_seconds": pause},
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _run_one(self, number: int) -> str:
        """Run one process until it exits; return the cause of the exit."""
        try:
            worker = self._workers[number] = _Worker(self._main, number, partial(self._observer.notified, number))
            self._observer.started(number, worker.pid)
            heartbeat = asyncio.create_task(self._kill_if_silent(number, worker))
            try:
                await worker.wait_started()
                self._log_started(number)
                await worker.wait_exited()
                return worker.exit_cause
            finally:
                heartbeat.cancel()
                worker.close()
                self._observer.exited(number, expected=self._stopping.is_set())
        except (StartError, OSError) as error:  # OSError: the system has no process or pipe left
            problem = f"workers: cannot start a worker: {error}; raise the limits of processes and open files"
            failure = error if isinstance(error, StartError) else StartError(problem)
            if number in self._never_started and not self._stopping.is_set():
                self._failure = failure
                self._stop(_EXIT)
            return str(failure)

    async def _kill_if_silent(self, number: int, worker: "_Worker") -> None:
        """Kill the worker if its event loop is silent for too long."""
        seconds = self._timeouts.heartbeat_seconds
        await worker.wait_silent(seconds / _CHECKS)
        if self._stopping.is_set():
            return  # because a worker that exits is silent too; `_stop` limits its time
        log.error(
            "worker does not respond; killing it",
            extra={"event": "worker_unresponsive", "worker": number, "heartbeat_timeout_seconds": seconds},
        )
        worker.kill(f"no response for {seconds:g} s")

    def _log_started(self, number: int) -> None:
        if self._never_started:
            self._never_started.discard(number)
            if not self._never_started:
                log.info("all workers serve", extra={"event": "workers_started", "workers": self._count})
        else:
            log.info("worker serves again", extra={"event": "worker_restarted", "worker": number})

    def _stop(self, message: str) -> None:
        self._stopping.set()
        for worker in self._workers.values():
            worker.send(message)
        seconds = self._timeouts.drain_seconds if message == _DRAIN else 0.0
        asyncio.get_running_loop().call_later(seconds + _EXIT_SECONDS, self._kill)

    def _kill(self) -> None:
        for worker in self._workers.values():
            worker.kill()


class _Worker:
    """One worker process, as the parent sees it."""

    def __init__(self, main: Main, number: int, on_notice: Callable[[str], None]) -> None:
        self._on_notice = on_notice
        self._pipe, other_end = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_run_worker, args=(main, number, other_end))
        with hangups_ignored():  # the new process inherits this
            self._process.start()
        other_end.close()
        self._loop = asyncio.get_running_loop()
        self._first = asyncio.Event()
        self._has_started = self._has_responded = False
        self._failure: StartError | None = None
        self._cause = ""
        self._loop.add_reader(self._pipe.fileno(), self._on_message)

    def _on_message(self) -> None:
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            self._loop.remove_reader(self._pipe.fileno())
            message = None
        if message == _PONG:
            self._has_responded = True
            return
        if isinstance(message, _Notice):
            self._on_notice(message.text)
            return
        self._has_started |= message == _STARTED
        if isinstance(message, StartError):
            self._failure, self._cause = message, str(message)
        self._first.set()

    async def wait_started(self) -> None:
        """Wait until the worker serves. If it cannot, wait for its exit and raise `StartError`."""
        await self._first.wait()
        if not self._has_started:
            await self.wait_exited()
            problem = f"a worker exited before it could serve: {self.exit_cause}; see its log lines above"
            raise self._failure or StartError(f"workers: {problem}")

    async def wait_silent(self, check_seconds: float) -> None:
        """Wait until the worker has not responded in `_CHECKS` consecutive checks, or has not started in many more."""
        for _ in range(_CHECKS * _START_FACTOR):
            if self._has_started:
                break
            await asyncio.sleep(check_seconds)
        silent_checks = 0
        while self._has_started and silent_checks < _CHECKS:
            if not silent_checks:
                self._has_responded = False
                self.send(_PING)
            await asyncio.sleep(check_seconds)
            silent_checks = 0 if self._has_responded else silent_checks + 1

    async def wait_exited(self) -> None:
        """Wait until the process has exited."""
        await _wait_readable(self._process.sentinel)
        self._process.join()

    def close(self) -> None:
        """Close the pipe."""
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()

    def send(self, message: str) -> None:
        """Send a message unless the process has exited."""
        with suppress(OSError):
            self._pipe.send(message)

    def kill(self, cause: str = "") -> None:
        """Kill the process with SIGKILL. `cause`: the exit cause to report."""
        self._cause = self._cause or cause
        self._process.kill()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_cause(self) -> str:
        """The worker's error or the parent's reason, if there is one, else the exit code or the signal's name."""
        if self._cause:
            return self._cause
        code = self._process.exitcode or 0
        if code >= 0:
            return f"exit code {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:  # the real-time signals have no names
            return f"signal {-code}"


def _run_worker(main: Main, number: int, pipe: "Connection[object, object]") -> None:
    """Run a worker process from its start to its exit."""
    # Ignore Ctrl-C until the worker handles signals, because the parent handles it for all workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main(number, Parent(pipe)))


async def _wait_readable(file: int) -> None:
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(file, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(file)
