"""Calls that stop early in any phase leave nothing: no task, descriptor, connection or memory."""

import asyncio
import gc
import itertools
import json
import os
import random
import time
import tracemalloc
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import pytest

from support import Exchange, Responder, Script, Service, request, service
from support.faults import STREAM

AT_ONCE = 50
WARM_UP_CALLS = 200
TRACED_CALLS = 300
TRACED_TIMES = 3
"""The calls under memory tracing, and the number of repetitions. Tracing doubles their time."""
GROWN_BYTES = 100_000
"""Bytes that TRACED_CALLS may add to Python's memory, in the best repetition. A kilobyte a call would be 300 000. A
correct service adds up to 40 000, and sometimes the two million of CPython's rebuilt table of interned strings, so the
best repetition counts. The resident size varies by millions, so it proves less."""
SETTLED_SECONDS, SETTLED_WITHIN_SECONDS = 0.3, 10.0
ENDED_WITHIN_SECONDS = 20.0
EXPIRED_CALLS, TIMEOUT_SECONDS = 600, 0.4


@dataclass(frozen=True)
class Phase:
    """The state of a call when it is cancelled: the upstream's part so far, and the number of messages read.

    `at_once`: cancelled immediately, so the service may never receive it.
    """

    rpc: str
    sent: bytes = b""
    reads: int = 0
    at_once: bool = False


UNARY, STREAMING = "CreateChatCompletion", "CreateChatCompletionStream"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
PHASES = {
    "unary": Phase(UNARY),
    "unary-in-body": Phase(UNARY, b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"),
    "unary-at-once": Phase(UNARY, at_once=True),
    "stream-before-headers": Phase(STREAMING),
    "stream-before-first-chunk": Phase(STREAMING, HEAD),
    "stream-between-chunks": Phase(STREAMING, HEAD + STREAM[0], reads=1),
    "stream-at-once": Phase(STREAMING, at_once=True),
}
MODELS = list(PHASES)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("engine", "calls"), [("builtin", 10_000), ("httpx", 1_200)])
async def test_nothing_is_left_of_cancelled_calls(engine: str, calls: int) -> None:
    async with Upstream() as upstream, service(upstream.base_url, upstream={"http_client": engine}) as chat:
        caller = Caller(chat, upstream)
        await caller.cancels(WARM_UP_CALLS)  # these open the resources that a correct service keeps
        held = await caller.held()
        assert held["connections"] == held["places"] == 0
        await caller.cancels(calls - WARM_UP_CALLS - TRACED_TIMES * TRACED_CALLS)
        grown_bytes = await _grown_bytes(caller)
        assert await caller.held() == held
        _check_counts(chat, WARM_UP_CALLS + calls)
        assert min(grown_bytes) < GROWN_BYTES, f"memory grew by {grown_bytes} bytes"


@pytest.mark.parametrize("engine", ["builtin", "httpx"])
async def test_nothing_is_left_of_expired_calls(engine: str) -> None:
    """An expired deadline cancels a call twice in the service: by gRPC and by the service's own timeout."""
    async with Upstream() as upstream, service(upstream.base_url, upstream={"http_client": engine}) as chat:
        caller = Caller(chat, upstream)
        await caller.cancels(AT_ONCE)
        held = await caller.held()
        await caller.expires(EXPIRED_CALLS)
        assert await caller.held() == held
        assert caller.expired > EXPIRED_CALLS / 4, "too few calls reached their phase"


async def _grown_bytes(caller: "Caller") -> list[int]:
    """Return the growth of Python's memory by TRACED_CALLS, in each repetition."""
    tracemalloc.start()
    try:
        await caller.cancels(WARM_UP_CALLS)  # after these, objects that are replaced from time to time are traced
        traced_bytes = [await caller.traced_bytes()]
        for _ in range(TRACED_TIMES):
            await caller.cancels(TRACED_CALLS)
            traced_bytes.append(await caller.traced_bytes())
    finally:
        tracemalloc.stop()
    return [after - before for before, after in itertools.pairwise(traced_bytes)]


def _check_counts(chat: Service, calls: int) -> None:
    """Check that each metric counted each call once. Calls cancelled at once may not have arrived."""
    for rpc in (UNARY, STREAMING):
        phases = [phase for number in range(calls) if (phase := PHASES[_model(number)]).rpc == rpc]
        started = chat.value("grpc_server_started_total", grpc_method=rpc)
        assert sum(not phase.at_once for phase in phases) <= started <= len(phases)
        assert chat.value("grpc_server_handled_total", grpc_method=rpc) == started
        assert chat.value("grpc_server_handled_total", grpc_method=rpc, grpc_code="Canceled") == started
        assert chat.value("grpc_server_handling_seconds_count", grpc_method=rpc) == started
        stream = str(rpc == STREAMING).lower()
        assert chat.value("gen_ai_client_operation_duration_seconds_count", stream=stream) == started
    assert chat.value("chatrpc_streams_ended_total", outcome="client_cancel") == started
    assert chat.value("chatrpc_rpcs_in_flight") == 0
    assert chat.value("chatrpc_upstream_retries_total") == 0


def _model(number: int) -> str:
    return MODELS[number % len(MODELS)]


@dataclass
class Seen:
    """The events of a call at the upstream."""

    sent: asyncio.Event = field(default_factory=asyncio.Event)
    """The upstream has sent its part of the phase."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """The service has closed the connection."""


class Upstream(Script):
    """Brings each call to the phase of its model name, then waits until the service closes the connection."""

    def __init__(self) -> None:
        super().__init__()
        self.exchanges = deque(maxlen=AT_ONCE)  # a full list would be a leak of the test itself
        self.connections_held = 0
        self.seen: dict[str, Seen] = {}
        """By the request id of the call."""

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_held += 1
        try:
            await super()._connected(reader, writer)
        finally:
            self.connections_held -= 1

    def choose(self, exchange: Exchange) -> Responder:
        """Return the response for the model's name."""
        phase = PHASES[json.loads(exchange.body)["model"]]
        seen = self.seen.get(exchange.header(b"x-request-id")) or Seen()

        async def respond(exchange: Exchange) -> None:
            try:
                await exchange.send(phase.sent)
                seen.sent.set()
                await exchange.closed_by_peer()
            finally:
                seen.gone.set()

        return respond


class Caller:
    """Makes calls in all phases, several at a time, cancels them, and counts the remaining resources."""

    def __init__(self, chat: Service, upstream: Upstream) -> None:
        self._chat, self._upstream = chat, upstream
        self._numbers = itertools.count()
        self.expired = 0
        """Number of calls whose deadline expired after the upstream had done its part."""

    async def cancels(self, count: int) -> None:
        """Make calls and cancel them. At the end each has left the upstream or was cancelled at once."""
        await self._make(count, self._cancel)

    async def expires(self, count: int) -> None:
        """Make calls whose deadline expires."""
        await self._make(count, self._expire)

    async def _make(self, count: int, call: Callable[[int], Awaitable[None]]) -> None:
        numbers = itertools.islice(self._numbers, count)

        async def some() -> None:
            for number in numbers:
                try:
                    await asyncio.wait_for(call(number), ENDED_WITHIN_SECONDS)
                except TimeoutError:
                    raise AssertionError(f"{_model(number)}: not reached, or its connection still held") from None

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(some())

    async def _cancel(self, number: int) -> None:
        model, call_id = _model(number), str(number)
        phase = PHASES[model]
        seen = self._upstream.seen[call_id] = Seen()
        call = getattr(self._chat.stub, phase.rpc)(request(model=model), metadata=[("x-request-id", call_id)])
        if not phase.at_once:
            for _ in range(phase.reads):
                await call.read()
            await seen.sent.wait()
        for _ in range(number % 5):  # turns of the loop, which the service shares, so that it advances a little
            await asyncio.sleep(0)
        call.cancel()
        if not phase.at_once:
            await seen.gone.wait()
        del self._upstream.seen[call_id]

    async def _expire(self, number: int) -> None:
        call_id = str(number)
        phase = PHASES[_model(number)]
        seen = self._upstream.seen[call_id] = Seen()
        timeout = random.uniform(1, 2) * TIMEOUT_SECONDS
        metadata = [("x-request-id", call_id)]
        call = getattr(self._chat.stub, phase.rpc)(request(model=_model(number)), timeout=timeout, metadata=metadata)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if seen.sent.is_set():  # otherwise the call may not reach its phase on a slow machine
            self.expired += 1
            await seen.gone.wait()
        del self._upstream.seen[call_id]

    async def held(self) -> dict[str, int]:
        """Return the resources of service, upstream and caller together, once they are stable."""
        held: dict[str, int] = {}
        since = started = time.monotonic()
        while (now := time.monotonic()) < min(since + SETTLED_SECONDS, started + SETTLED_WITHIN_SECONDS):
            before, held = held, self._held_now()
            if held != before:
                since = now
            await asyncio.sleep(0.01)
        return held

    def _held_now(self) -> dict[str, int]:
        return {
            "tasks": len(asyncio.all_tasks()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "connections": self._upstream.connections_held,
            "places": self._chat.server.admission.in_flight,
        }

    async def traced_bytes(self) -> int:
        """Return the memory that Python has allocated since tracing began, once it is stable."""
        await self.held()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
