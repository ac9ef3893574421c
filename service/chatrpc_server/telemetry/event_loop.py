"""What no call tells of by itself, looked at again and again: is the event loop late, how much does it hold."""

import asyncio
from collections.abc import Callable

from chatrpc_server.telemetry.metrics import Metrics

_LAG_SECONDS = 0.25
_COUNTED_EACH = 4
"""Counting takes a millisecond for a few thousand tasks, so it is done less often."""


async def sample(metrics: Metrics, upstream: str, connections: Callable[[], tuple[int, int]]) -> None:
    """Goes on until it is cancelled. `connections` gives how many the upstream has in use, and idle."""
    loop = asyncio.get_running_loop()
    active, idle = (metrics.upstream_connections.labels(upstream, state) for state in ("active", "idle"))
    while True:
        metrics.tasks.set(len(asyncio.all_tasks()))
        for gauge, count in zip((active, idle), connections(), strict=True):
            gauge.set(count)
        for _ in range(_COUNTED_EACH):
            due = loop.time() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            metrics.loop_lag.observe(max(0.0, loop.time() - due))
