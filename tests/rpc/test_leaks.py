"""Nothing is left of calls that ended early, in whatever phase: no task, no descriptor, no connection, no memory."""

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

from support import Answer, Exchange, Script, Service, request, service
from support.faults import STREAM

AT_ONCE = 50
WARM_UP_CALLS = 200
TRACED_CALLS = 300
TRACED_TIMES = 3
"""The last calls of all, and how often so many: tracing makes them twice as slow."""
GROWN_BYTES = 100_000
"""What TRACED_CALLS may add to the memory that Python has, each time. A kilobyte a call would be 300 000. A sound
service adds up to 40 000, and once in a while the two million of CPython's table of interned strings, made anew;
hence the least of the times. The resident size says less: it goes up and down by millions."""
SETTLED_SECONDS, SETTLED_WITHIN_SECONDS = 0.3, 10.0
ENDED_WITHIN_SECONDS = 20.0
EXPIRED_CALLS, TIMEOUT_SECONDS = 600, 0.4


@dataclass(frozen=True)
class Phase:
    """Where a call is when it is cancelled: what the upstream has sent by then, and how many messages were read.

    `at_once`: no sooner made than cancelled; the service need not hear of it.
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
        await caller.cancels(WARM_UP_CALLS)  # what a sound service keeps is there after these
        held = await caller.held()
        assert held["connections"] == held["places"] == 0
        await caller.cancels(calls - WARM_UP_CALLS - TRACED_TIMES * TRACED_CALLS)
        grown_bytes = await _grown_bytes(caller)
        assert await caller.held() == held
        _check_counts(chat, WARM_UP_CALLS + calls)
        assert min(grown_bytes) < GROWN_BYTES, f"grown by {grown_bytes} bytes"


@pytest.mark.parametrize("engine", ["builtin", "httpx"])
async def test_nothing_is_left_of_expired_calls(engine: str) -> None:
    """An expired deadline cancels a call twice, in the service: gRPC does, and the timeout of the service's own."""
    async with Upstream() as upstream, service(upstream.base_url, upstream={"http_client": engine}) as chat:
        caller = Caller(chat, upstream)
        await caller.cancels(AT_ONCE)
        held = await caller.held()
        await caller.expires(EXPIRED_CALLS)
        assert await caller.held() == held
        assert caller.expired > EXPIRED_CALLS / 4, "few of the calls came as far as they should"


async def _grown_bytes(caller: "Caller") -> list[int]:
    """How much more memory Python has after TRACED_CALLS, each time."""
    tracemalloc.start()
    try:
        await caller.cancels(WARM_UP_CALLS)  # what is replaced every now and then is traced after these
        traced_bytes = [await caller.traced_bytes()]
        for _ in range(TRACED_TIMES):
            await caller.cancels(TRACED_CALLS)
            traced_bytes.append(await caller.traced_bytes())
    finally:
        tracemalloc.stop()
    return [after - before for before, after in itertools.pairwise(traced_bytes)]


def _check_counts(chat: Service, calls: int) -> None:
    """Each call was counted once in each way; those that were cancelled at once may not have come."""
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
    """What the upstream has seen of a call."""

    sent: asyncio.Event = field(default_factory=asyncio.Event)
    """What is sent in this phase is on its way."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """The service has closed the connection."""


class Upstream(Script):
    """Goes with each call as far as the model says, then waits for the service to go."""

    def __init__(self) -> None:
        super().__init__()
        self.exchanges = deque(maxlen=AT_ONCE)  # all of them would be a leak of the test's own
        self.connections_held = 0
        self.seen: dict[str, Seen] = {}
        """By the request id of the call."""

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_held += 1
        try:
            await super()._connected(reader, writer)
        finally:
            self.connections_held -= 1

    def choose(self, exchange: Exchange) -> Answer:
        """The answer that the model's name asks for."""
        phase = PHASES[json.loads(exchange.body)["model"]]
        seen = self.seen.get(exchange.header(b"x-request-id")) or Seen()

        async def answer(exchange: Exchange) -> None:
            try:
                await exchange.send(phase.sent)
                seen.sent.set()
                await exchange.closed_by_peer()
            finally:
                seen.gone.set()

        return answer


class Caller:
    """Makes calls and cancels them, some at a time and all phases in turn; and looks at what that leaves."""

    def __init__(self, chat: Service, upstream: Upstream) -> None:
        self._chat, self._upstream = chat, upstream
        self._numbers = itertools.count()
        self.expired = 0
        """Calls whose deadline passed after the upstream had done its part."""

    async def cancels(self, count: int) -> None:
        """Makes so many more calls. At the end each has left the upstream, or was cancelled at once."""
        await self._make(count, self._cancel)

    async def expires(self, count: int) -> None:
        """The same with calls whose deadline passes."""
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
        for _ in range(number % 5):  # turns of the loop, which the service shares: it has come a little further
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
        if seen.sent.is_set():  # else, on a slow machine, the call may never have come so far
            self.expired += 1
            await seen.gone.wait()
        del self._upstream.seen[call_id]

    async def held(self) -> dict[str, int]:
        """What service, upstream and caller hold together, once that does not change any more."""
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
        """The memory that Python has taken since tracing began, once that is settled."""
        await self.held()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
