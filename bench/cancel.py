"""How fast does a cancel reach the upstream? From the caller's cancel to the close of the upstream's connection.

    python bench/cancel.py [--trials N] [--http-client builtin|httpx] [--json FILE]

What it measures: the service is a separate process; caller and upstream are this process, so that one clock measures
the end of the call and the close of the upstream's connection. In each phase of a call, on a fresh connection:

    unary           the upstream has the request and sends nothing
    headers         the same for a stream
    first chunk     the upstream has sent the headers of a stream
    between chunks  the caller has read one chunk
    blocked         the caller reads nothing; the upstream sends until its writes block

The caller either cancels or lets its deadline pass, which is the time of the call plus its timeout. The first row is
the floor: from `close()` of a plain socket until the same upstream sees it, without a service between them.

How to read it: the promise is 10 ms at p99 for a caller's cancel on loopback. The excess of a row over the floor is
the cost of gRPC and the service. A deadline may take a millisecond longer, which is gRPC's unit. `closed` must be
100 %: an upstream connection that is open after 5 s makes the exit code 1. Noise shows in the maximum first. The run
takes 3 minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from support import Exchange, Responder, Script, request
from support.process import ANY_PORTS, running

AT_ONCE = 4
"""Trials that overlap; half as many if each has megabytes to send. None ends before all are in their phase, because a
trial on its way there keeps the loops busy, and a busy loop would be measured."""
CLOSED_WITHIN_SECONDS = 5.0
REACHED_WITHIN_SECONDS = 10.0
SETTLED_SECONDS = (0.02, 0.06)
"""Random delay before the cancel: the service reaches the phase meanwhile, and trials are not in step."""
BLOCKED_SECONDS = 0.1
"""A write that takes longer is blocked by the reader."""

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def framed_event(characters: int) -> bytes:
    """Return one chunk of a stream as one HTTP/1.1 chunk."""
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "%b"}}]}\n\n' % (b"x" * characters)
    return b"%x\r\n%b\r\n" % (len(event), event)


# --- the phases: the upstream's part of each ------------------------------------------------------------------------


async def say_nothing(exchange: Exchange) -> None:
    pass


async def send_headers(exchange: Exchange) -> None:
    await exchange.send(HEAD)


async def send_chunk(exchange: Exchange) -> None:
    await exchange.send(HEAD, framed_event(5))


async def send_until_blocked(exchange: Exchange) -> None:
    piece = framed_event(100_000)
    await exchange.send(HEAD)
    with suppress(TimeoutError):
        while True:
            await asyncio.wait_for(exchange.send(piece), BLOCKED_SECONDS)


@dataclass(frozen=True)
class Phase:
    """A phase of a call. The caller reads `reads` messages; the timeouts are long enough to reach the phase."""

    name: str
    rpc: str
    lead_up: Responder
    reads: int = 0
    timeout_seconds: tuple[float, float] = (0.15, 0.3)
    at_once: int = AT_ONCE


PHASES = (
    Phase("unary", "CreateChatCompletion", say_nothing),
    Phase("headers", "CreateChatCompletionStream", say_nothing),
    Phase("first chunk", "CreateChatCompletionStream", send_headers),
    Phase("between chunks", "CreateChatCompletionStream", send_chunk, reads=1),
    Phase(
        "blocked", "CreateChatCompletionStream", send_until_blocked, timeout_seconds=(0.4, 0.6), at_once=AT_ONCE // 2
    ),
)


class Upstream(Script):
    """Brings the call of each trial to its phase; records when its connection closes."""

    def __init__(self) -> None:
        super().__init__()
        self.exchanges = deque(maxlen=2 * AT_ONCE)
        self.trials: dict[str, Trial] = {}

    def choose(self, exchange: Exchange) -> Responder:
        """Return the response for the request's trial, by its request id."""
        return self.trials[exchange.header(b"x-request-id")].respond


class Trial:
    """One call as the upstream sees it."""

    def __init__(self, upstream: Upstream, lead_up: Responder) -> None:
        self.id = f"trial-{len(upstream.trials)}"
        upstream.trials[self.id] = self
        self._lead_up = lead_up
        self._reached = asyncio.Event()
        self._closed: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def respond(self, exchange: Exchange) -> None:
        """Read the whole time, because a write may notice late that the other side has closed."""
        self._exchange = exchange
        leading_up = asyncio.create_task(self._lead(exchange))
        with suppress(ConnectionError):
            await exchange.closed_by_peer()
        if not self._closed.cancelled():
            self._closed.set_result(time.monotonic())
        leading_up.cancel()
        self._reached.set()  # so that no waiter hangs

    async def _lead(self, exchange: Exchange) -> None:
        with suppress(ConnectionError):
            await self._lead_up(exchange)
            self._reached.set()

    async def reached(self) -> None:
        """Wait until the upstream has done its part or has lost the connection."""
        await asyncio.wait_for(self._reached.wait(), REACHED_WITHIN_SECONDS)

    async def milliseconds_until_closed(self, since: float) -> float | None:
        """Return None if the connection is still open after the limit; then reset it."""
        try:
            return (await asyncio.wait_for(self._closed, CLOSED_WITHIN_SECONDS) - since) * 1000
        except TimeoutError:
            self._exchange.reset()
            return None


# --- the ends of a call ----------------------------------------------------------------------------------------------


class Missed(Exception):
    """The deadline passed before the phase was reached: the machine was busy. The trial does not count."""


End = Callable[[Upstream, Any, Phase, asyncio.Barrier], Awaitable[float | None]]
"""Makes a call, waits for the other trials, ends the call; returns milliseconds until the upstream saw it."""


async def by_cancel(upstream: Upstream, stub: Any, phase: Phase, together: asyncio.Barrier) -> float | None:
    trial = Trial(upstream, phase.lead_up)
    call = getattr(stub, phase.rpc)(request(), metadata=[("x-request-id", trial.id)])
    for _ in range(phase.reads):
        await call.read()
    await trial.reached()
    await together.wait()
    await asyncio.sleep(random.uniform(*SETTLED_SECONDS))
    since = time.monotonic()
    call.cancel()
    return await trial.milliseconds_until_closed(since)


async def by_deadline(upstream: Upstream, stub: Any, phase: Phase, together: asyncio.Barrier) -> float | None:
    trial = Trial(upstream, phase.lead_up)
    timeout = random.uniform(*phase.timeout_seconds)
    since = time.monotonic() + timeout
    call = getattr(stub, phase.rpc)(request(), metadata=[("x-request-id", trial.id)], timeout=timeout)
    for _ in range(phase.reads):
        await call.read()
    await trial.reached()
    await together.wait()
    if time.monotonic() > since:
        raise Missed
    return await trial.milliseconds_until_closed(since)


async def by_close(upstream: Upstream, stub: Any, phase: Phase, together: asyncio.Barrier) -> float | None:
    trial = Trial(upstream, say_nothing)
    address = urlsplit(upstream.base_url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nx-request-id: %b\r\ncontent-length: 0\r\n\r\n" % trial.id.encode())
        await trial.reached()
        await together.wait()
        await asyncio.sleep(random.uniform(*SETTLED_SECONDS))
        since = time.monotonic()
        connection.close()
        return await trial.milliseconds_until_closed(since)


ENDS: dict[str, End] = {"cancel": by_cancel, "deadline": by_deadline}
FLOOR = Phase("no service", "", say_nothing)


# --- the run and its table -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """The trials of one phase and one kind of end, with the sorted milliseconds of the closed ones."""

    phase: str
    ended_by: str
    trials: int
    milliseconds: list[float]

    def percentile(self, percent: float) -> float:
        """Return a percentile of the milliseconds."""
        if not self.milliseconds:
            return math.nan
        return self.milliseconds[math.ceil(len(self.milliseconds) * percent / 100) - 1]

    def cells(self) -> list[str]:
        closed = f"{len(self.milliseconds) / self.trials:.1%}"
        times = [f"{self.percentile(percent):.2f}" for percent in (50, 99, 100)]
        return [self.phase, self.ended_by, str(self.trials), closed, *times]


async def row(upstream: Upstream, stub: Any, phase: Phase, ended_by: str, end: End, trials: int) -> Row:
    results: list[float | None] = []
    missed = 0

    async def one(together: asyncio.Barrier) -> None:
        nonlocal missed
        try:
            results.append(await end(upstream, stub, phase, together))
        except Missed:
            missed += 1

    while (left := trials - len(results)) > 0:
        together = asyncio.Barrier(min(phase.at_once, left))
        await asyncio.gather(*(one(together) for _ in range(together.parties)))
        progress(f"{phase.name}, {ended_by}: {len(results)}/{trials}")
        if missed > trials:
            raise RuntimeError(f"most calls do not reach the phase {phase.name!r} in {phase.timeout_seconds} s")
    return Row(phase.name, ended_by, trials, sorted(each for each in results if each is not None))


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


async def rows(trials: int, client: str) -> list[Row]:
    async with Upstream() as upstream:
        with running(
            "serve", *ANY_PORTS, f"--upstream.http-client={client}", OPENAI_BASE_URL=upstream.base_url
        ) as process:
            target = process.log("serving")["listen"]
            async with grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
                stub = ChatCompletionServiceStub(channel)
                for phase in PHASES:  # warm up, because the first call loads code
                    await row(upstream, stub, phase, "warming up", by_cancel, AT_ONCE)
                done = [await row(upstream, stub, FLOOR, "close()", by_close, trials)]
                for ended_by, end in ENDS.items():
                    done += [await row(upstream, stub, phase, ended_by, end, trials) for phase in PHASES]
    progress("")
    return done


def table(measured: Sequence[Row]) -> str:
    header = ["phase", "ended by", "trials", "closed", "p50, ms", "p99, ms", "max, ms"]
    lines = [header, ["---", "---", *["--:"] * (len(header) - 2)], *(each.cells() for each in measured)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200, help="calls for each row; default: %(default)s")
    parser.add_argument("--http-client", choices=("builtin", "httpx"), default="builtin", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args()
    measured = asyncio.run(rows(options.trials, options.http_client))
    print(f"**{options.http_client}**\n\n{table(measured)}")
    if options.json:
        options.json.write_text(
            json.dumps({"http_client": options.http_client, "rows": [vars(each) for each in measured]})
        )
    return 0 if all(len(each.milliseconds) == each.trials for each in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
