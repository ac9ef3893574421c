"""N processes that do the same work: spawned, watched, started again when they die, stopped together.

Spawned, never forked: gRPC does not survive a fork. Nothing here knows what they do; they share a port by binding it
with SO_REUSEPORT. They are told to stop over pipes and not by signals, which a terminal or an init system sends to all
processes at once: a worker would take its parent's for a second one, and drop its calls. The end of the pipe also tells
a worker that its parent is gone.
"""

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Protocol

from chatrpc_server.process.lifecycle import StartError, Stops, on_stop_signals, stop_signals

log = logging.getLogger("chatrpc.workers")

_SPAWN = get_context("spawn")
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
"""Between the end of a worker and its next start; doubled each time."""
_STABLE_SECONDS = 60.0
"""A worker that lived so long ended of something new."""
_LAST_WORDS_SECONDS = 5.0
"""How long workers may take to end, beyond the time that draining needs. Then they are killed."""

_STARTED, _DRAIN, _END = "started", "drain", "end"


class Parent:
    """The parent, as a worker sees it."""

    def __init__(self, pipe: "Connection[object, object]") -> None:
        self._pipe = pipe
        self.is_gone = False
        """It has ended before this worker."""

    def started(self) -> None:
        """To be told once the worker does its work."""
        self._send(_STARTED)

    def failed(self, error: StartError) -> None:
        """To be told why the worker cannot start; the parent raises it."""
        self._send(error)

    def _send(self, word: object) -> None:
        with suppress(OSError):  # the parent is gone: `stops` tells
            self._pipe.send(word)

    @contextmanager
    def stops(self) -> Iterator[Stops]:
        """Like `lifecycle.stop_signals`, at the parent's word. A signal to this process only lets it drain."""
        drain, end = asyncio.Event(), asyncio.Event()
        loop, pipe = asyncio.get_running_loop(), self._pipe.fileno()

        def hear() -> None:
            try:
                word = self._pipe.recv()
            except (EOFError, OSError):
                self.is_gone = True
                loop.remove_reader(pipe)
                word = _DRAIN
            drain.set()
            if word == _END:
                end.set()

        steps = iter((drain, end))

        async def told() -> None:
            await next(steps).wait()

        loop.add_reader(pipe, hear)
        try:
            with on_stop_signals(drain.set):
                yield told
        finally:
            loop.remove_reader(pipe)


Main = Callable[[int, Parent], int]
"""A worker's work: gets its number, from 0, and gives its exit code. It is pickled, with all that it holds."""


class Watch(Protocol):
    """Who is told of the processes."""

    def started(self, number: int, pid: int) -> None:
        """There is a process for the worker of this number."""

    def ended(self, number: int, *, expected: bool) -> None:
        """There is none any more. `expected`: it had been told to stop."""


class Workers:
    """`count` processes that each run `main`, and need `drain_seconds` at the most when they are to drain."""

    def __init__(self, count: int, main: Main, drain_seconds: float, watch: "Watch") -> None:
        self._count, self._main, self._drain_seconds, self._watch = count, main, drain_seconds, watch
        self._workers: dict[int, _Worker] = {}
        self._never_started = set(range(count))
        self._stopping = asyncio.Event()
        self._failure: StartError | None = None

    async def run(self) -> None:
        """Until SIGTERM or SIGINT: then all drain, and a second signal ends them at once. Raises `StartError`.

        A worker that cannot start ends all. One that did, and died, is tried again and again: the others do their work.
        """
        with stop_signals() as stop_signal:
            obeying = asyncio.create_task(self._obey(stop_signal))
            try:
                await asyncio.gather(*(self._keep(number) for number in range(self._count)))
            finally:
                obeying.cancel()
                self._kill()  # nobody is left, unless something went wrong here
        if self._failure:
            raise self._failure

    async def _obey(self, stop_signal: Stops) -> None:
        await stop_signal()
        self._stop(_DRAIN)
        await stop_signal()
        self._stop(_END)

    async def _keep(self, number: int) -> None:
        """One process after another, until they are to stop."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            begun = time.monotonic()
            how = await self._one(number)
            if self._stopping.is_set():
                break
            if time.monotonic() - begun > _STABLE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            log.error(
                "worker exited unexpectedly; restarting it",
                extra={"event": "worker_exited", "worker": number, "cause": how, "restart_in_seconds": pause},
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _one(self, number: int) -> str:
        """One process, from its start to its end; how it ended."""
        try:
            worker = self._workers[number] = _Worker(self._main, number)
            self._watch.started(number, worker.pid)
            try:
                await worker.started()
                self._note_started(number)
                await worker.ended()
                return worker.how
            finally:
                self._watch.ended(number, expected=self._stopping.is_set())
        except (StartError, OSError) as error:  # OSError: no process is to be had, nor a pipe to it
            failure = error if isinstance(error, StartError) else StartError(f"cannot start a worker: {error}")
            if number in self._never_started and not self._stopping.is_set():
                self._failure = failure
                self._stop(_END)
            return str(failure)

    def _note_started(self, number: int) -> None:
        if self._never_started:
            self._never_started.discard(number)
            if not self._never_started:
                log.info("all workers serve", extra={"event": "workers_started", "workers": self._count})
        else:
            log.info("worker serves again", extra={"event": "worker_restarted", "worker": number})

    def _stop(self, word: str) -> None:
        self._stopping.set()
        for worker in self._workers.values():
            worker.tell(word)
        seconds = self._drain_seconds if word == _DRAIN else 0.0
        asyncio.get_running_loop().call_later(seconds + _LAST_WORDS_SECONDS, self._kill)

    def _kill(self) -> None:
        for worker in self._workers.values():
            worker.kill()


class _Worker:
    """One process, from its start to its end, as the parent sees it."""

    def __init__(self, main: Main, number: int) -> None:
        self._pipe, other_end = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_work, args=(main, number, other_end))
        self._process.start()
        other_end.close()

    async def started(self) -> None:
        """Returns once it works. Raises `StartError`, after its end."""
        await _readable(self._pipe.fileno())
        try:
            word = self._pipe.recv()
        except (EOFError, OSError):
            word = None
        if word != _STARTED:
            await self.ended()
            raise word if isinstance(word, StartError) else StartError(f"a worker ended before it worked: {self.how}")

    async def ended(self) -> None:
        """Returns once it has ended."""
        await _readable(self._process.sentinel)
        self._process.join()

    def tell(self, word: str) -> None:
        """Says so, if there is still somebody to hear it."""
        with suppress(OSError):
            self._pipe.send(word)

    def kill(self) -> None:
        """Ends it without more ado."""
        self._process.kill()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def how(self) -> str:
        """How it ended."""
        code = self._process.exitcode or 0
        if code >= 0:
            return f"exit code {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:  # the real-time signals have no names
            return f"signal {-code}"


def _work(main: Main, number: int, pipe: "Connection[object, object]") -> None:
    """The whole of a worker's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until it listens: Ctrl-C is the parent's business
    sys.exit(main(number, Parent(pipe)))


async def _readable(file: int) -> None:
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(file, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(file)
