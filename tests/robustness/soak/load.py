"""The load of a soak: random calls, each judged by its expected end."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from support import docs, request
from support.faults import FAULTS, SOUND, STREAM_TEXTS, WHOLE_TEXT

FAULTS_TABLE = Path(__file__).parents[3] / "docs" / "faults.md"

CALLS_PER_SECOND = 100
CALLS_AT_ONCE = 60
FAULTY_SHARE, SHORT_SHARE, PAUSING_SHARE = 0.2, 0.1, 0.3
SOUND_SHARES = {"ok": 0.84, "long": 0.15, "large": 0.01}
CANCELLED_SHARE = 0.4
"""More than the intended third, because some calls are done before the cancel."""
DEADLINE_SECONDS = 6.0
SHORT_SECONDS = (0.02, 0.5)
TICK_SECONDS, STALL_SECONDS = 0.1, 0.5
"""A tick that is so late shows that the machine was too busy to keep deadlines."""
CHANNELS = 4
CHANNEL_SECONDS = 2.0
"""Interval at which a new channel replaces one of the channels, but never the first."""

FAULTY = sorted(name for name, fault in FAULTS.items() if fault.response is not FAULTS["refused"].response)
"""All faults except those that happen before a request can name them, which share that response."""
METHODS = {"unary": "CreateChatCompletion", "stream": "CreateChatCompletionStream"}
GIVEN_UP = {"429-retry-after": "RESOURCE_EXHAUSTED", "503-then-ok": "UNAVAILABLE"}
"""Status of a success with a short deadline: the delay of the retry would exceed it, so there is no retry."""

OUTCOMES = ("ok", "cancelled", "faulty", "deadline", "wrong")


@dataclass(frozen=True)
class Plan:
    """One random call."""

    rpc: str
    model: str
    deadline_seconds: float
    cancel_after_seconds: float | None
    pause_seconds: float
    """Pause of the reads of a stream after its first message."""

    @classmethod
    def drawn(cls, dice: random.Random) -> "Plan":
        """Draw a call."""
        sound = dice.choices(list(SOUND_SHARES), list(SOUND_SHARES.values()))[0]
        model = dice.choice(FAULTY) if dice.random() < FAULTY_SHARE else sound
        # The times of cancels are spread over the duration of calls: some milliseconds, or a second.
        spread = dice.choice((0.01, 1.0)) if model in FAULTY else 0.01 if model == "ok" else 1.0
        return cls(
            dice.choice(list(METHODS)),
            model,
            dice.uniform(*SHORT_SECONDS) if dice.random() < SHORT_SHARE else DEADLINE_SECONDS,
            dice.uniform(0, spread) if dice.random() < CANCELLED_SHARE else None,
            dice.uniform(0, 1.5) if dice.random() < PAUSING_SHARE else 0.0,
        )

    def outcome(self, code: str, text: str, expected: str, *, cancelled: bool, stalled: bool) -> str:
        """Return one of OUTCOMES. `expected` is the code in docs/faults.md; `stalled` means the machine."""
        whole = STREAM_TEXTS.get(self.model, WHOLE_TEXT) if self.rpc == "stream" else WHOLE_TEXT
        if not (text == whole if code == "OK" else whole.startswith(text)):
            return "wrong"
        if code == "CANCELLED" and cancelled:
            return "cancelled"
        if code == expected:
            return "ok" if self.model in SOUND else "faulty"
        short = self.deadline_seconds < DEADLINE_SECONDS
        if code == "DEADLINE_EXCEEDED" and (short or stalled):
            return "deadline"
        if code == GIVEN_UP.get(self.model) and short:
            return "deadline"
        return "wrong"


class Channel:
    """A separate connection to the service."""

    def __init__(self, address: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self.stub = ChatCompletionServiceStub(self._channel)
        self.closed = False

    async def close(self) -> None:
        """Close the connection, which cancels its calls."""
        self.closed = True
        await self._channel.close()


class Load:
    """Random calls while `running` is open; `outcomes` counts their ends."""

    def __init__(self, address: str, dice: random.Random) -> None:
        self.outcomes: Counter[str] = Counter()
        self._address = address
        self._dice = dice
        columns = [row.strip("| ").split(" | ") for row in docs.read(FAULTS_TABLE, "faults").splitlines()]
        self._expected = {(row[0], row[2]): row[3] for row in columns[2:]}
        self._expected |= {(model, rpc): "OK" for model in SOUND for rpc in METHODS}
        self._slots = asyncio.Semaphore(CALLS_AT_ONCE)
        self._channels: list[Channel] = []
        self._stalled = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Make calls; on exit begin no more, and wait for those in flight."""
        self._channels = [Channel(self._address) for _ in range(CHANNELS)]
        async with asyncio.TaskGroup() as tasks:
            endless = list(map(tasks.create_task, (self._call_again(tasks), self._reconnect(), self._watch_clock())))
            yield
            for task in endless:
                task.cancel()
        for channel in self._channels:
            await channel.close()

    async def _call_again(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await asyncio.sleep(self._dice.expovariate(CALLS_PER_SECOND))
            await self._slots.acquire()
            tasks.create_task(self._call(Plan.drawn(self._dice)))

    async def _reconnect(self) -> None:
        while True:
            await asyncio.sleep(CHANNEL_SECONDS)
            place = self._dice.randrange(1, CHANNELS)
            old, self._channels[place] = self._channels[place], Channel(self._address)
            await old.close()

    async def _watch_clock(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)
            if time.monotonic() - before > STALL_SECONDS:
                self._stalled = time.monotonic()

    async def _call(self, plan: Plan) -> None:
        began, channel = time.monotonic(), self._dice.choice(self._channels)
        method = getattr(channel.stub, METHODS[plan.rpc])
        call = method(request(model=plan.model), timeout=plan.deadline_seconds)
        cancel = None
        if plan.cancel_after_seconds is not None:
            cancel = asyncio.get_running_loop().call_later(plan.cancel_after_seconds, call.cancel)
        texts: list[str] = []
        try:
            async with asyncio.timeout(2 * DEADLINE_SECONDS):
                await _read(call, plan, texts)
                code, details = await call.code(), await call.details()
        except TimeoutError:
            code, details = None, "no status in time"
        finally:
            self._slots.release()
            if cancel is not None:
                cancel.cancel()
        name, expected = code.name if code else "NONE", self._expected[plan.model, plan.rpc]
        if name == "DEADLINE_EXCEEDED":
            await asyncio.sleep(2 * TICK_SECONDS)  # the tick that shows a stall may come after the end of the call
        cancelled, stalled = cancel is not None or channel.closed, self._stalled > began
        outcome = plan.outcome(name, "".join(texts), expected, cancelled=cancelled, stalled=stalled)
        self.outcomes[outcome] += 1
        if outcome == "wrong":
            print(f"\nWRONG: {name} {details!r} after {texts}, for {plan}; expected {expected}", flush=True)


async def _read(call: Any, plan: Plan, texts: list[str]) -> None:
    """Append the text of each message to `texts` until the call is done."""
    try:
        if plan.rpc == "unary":
            texts.append((await call).choices[0].message.content)
            return
        async for chunk in call:
            texts += [choice.delta.content for choice in chunk.choices]
            if len(texts) == 1:
                await asyncio.sleep(plan.pause_seconds)
    except grpc.aio.AioRpcError:
        pass
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task and task.cancelling():
            raise  # this task was cancelled, not the call
