"""The loads, and the measurement of one figure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from processes import Running
from rig import Rig, RigError

Figures = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """One load, given to every server in turn."""

    key: str
    title: str
    in_flight: int
    chunks: int = 0
    """0: unary calls."""
    pace_ms: int = 0
    connections: int = 16
    """For gRPC; HTTP/1.1 needs one for each concurrent call."""
    seconds: float = 1.5
    slow_ones_too: bool = True

    def __call__(self, rig: Rig, target: Running | None) -> Figures:
        """Run the load; return its figures."""
        cpu_before = target.cpu_seconds() if target else 0.0
        answer = rig(
            "load",
            target,
            unary=not self.chunks,
            model=f"bench-{self.chunks}-{self.pace_ms}" if self.chunks else "bench",
            inflight=self.in_flight,
            connections=self.connections,
            # With a pace each caller makes one call. The starts are spread over two seconds, so they are not in step.
            seconds=0 if self.pace_ms else self.seconds,
            stagger=2 if self.pace_ms else 0,
        )
        cpu_seconds = target.cpu_seconds() - cpu_before if target else 0.0
        units = answer["calls"] * (self.chunks or 1)
        figures: Figures = {"calls": answer["calls"], "faults": answer["faults"]}
        if units:
            figures["per_second"] = units / answer["seconds"]
            figures["cpu_us"] = cpu_seconds / units * 1e6
            figures["messages"] = answer["messages"] / answer["calls"]
            figures["first_ms"] = answer["first_ms"]
            figures["whole_ms"] = answer["whole_ms"]
            figures["jitter_ms"] = answer["jitter_ms"]
        return figures


QUICK = ("unary", "66", "paced 50", "paced 200")
LOADS = (
    Load("unary", "unary calls, 32 at once", 32),
    Load("66", "streams of 66 chunks, 32 at once, unpaced", 32, chunks=66),
    Load("400", "streams of 400 chunks, 32 at once, unpaced", 32, chunks=400, slow_ones_too=False),
    Load("paced 50", "50 streams, 50 chunks/s each", 50, 150, 20, connections=10),
    Load("paced 200", "200 streams, 50 chunks/s each", 200, 150, 20, connections=20, slow_ones_too=False),
    Load("paced 1000", "1 000 streams, 50 chunks/s each", 1000, 150, 20, connections=20, slow_ones_too=False),
)

CANCELS = (("stream", "bench-hold", False), ("unary", "bench-silent", True))
_START_SECONDS = 120
_HELD = 1000


def started(rig: Rig, start: Callable[[], Running]) -> tuple[Running, float]:
    """Start a server; return it and the seconds until its first right response. Raise `RigError` if there is none."""
    began = time.monotonic()
    running = start()
    try:
        while True:
            answer = rig("load", running, unary=True, model="bench", inflight=1, connections=1)
            seconds = time.monotonic() - began
            if answer["calls"]:
                if running.server.streams:  # warm up, because LiteLLM's first stream holds its chunks back
                    rig("load", running, model="bench-66-0", inflight=1, connections=1)
                return running, seconds
            if running.ended or seconds > _START_SECONDS:
                raise RigError(f"{running.server.name} does not answer: {answer['faults']}\n{running.last_words()}")
            time.sleep(0.02)
    except BaseException:
        running.stop()
        raise


def held(rig: Rig, target: Running) -> Figures:
    """Return the memory with 0, 1 000 and 2 000 open streams, and the CPU of one more call beside them."""
    figures: Figures = {"idle_mib": target.resident_mib()}
    try:
        if not target.server.streams:
            return figures
        _one_more(rig, target)  # warm up
        figures["call_us"] = _one_more(rig, target)
        for streams in (_HELD, 2 * _HELD):
            rig("open", target, model="bench-hold", inflight=_HELD, connections=20)
            figures[f"mib_at_{streams}"] = target.resident_mib()
        figures["call_beside_us"] = _one_more(rig, target)
    except RigError as error:
        figures["error"] = str(error)
    finally:
        rig("close")
        time.sleep(1)  # so that its connections to the upstream are closed before the pause
    return figures


def _one_more(rig: Rig, target: Running) -> float:
    before = target.cpu_seconds()
    answer = rig("load", target, unary=True, model="bench", inflight=1, connections=1, seconds=0.7)
    if not answer["calls"]:
        raise RigError(f"no call beside the open streams: {answer['faults']}")
    return (target.cpu_seconds() - before) / float(answer["calls"]) * 1e6


def cancels(rig: Rig, target: Running | None, trials: int) -> Figures:
    """Return the delay from the caller's cancel until the upstream sees it."""
    figures: Figures = {}
    if target and not target.server.has_upstream:
        return figures
    for name, model, unary in CANCELS:
        if unary or target is None or target.server.streams:
            try:
                figures[name] = rig("cancel", target, model=model, unary=unary, trials=trials)
            except RigError as error:
                figures[name] = {"error": str(error)}
    return figures
