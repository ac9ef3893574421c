"""Samples values that do not belong to one call: delay and tasks of the event loop, connections, bytes in flight."""

import asyncio
from collections.abc import Callable, Mapping

from chatrpc_server.telemetry.metrics import Metrics

_LAG_SECONDS = 0.25
_LAGS_PER_COUNT = 4
"""Delays are measured more often than tasks are counted, because counting a few thousand tasks takes a millisecond."""

Connections = Callable[[], tuple[int, int]]
"""Returns the numbers of connections in use and idle."""


async def sample(metrics: Metrics, connections: Mapping[str, Connections], bytes_in_flight: Callable[[], int]) -> None:
    """Record samples until cancelled. `connections`: upstream name to the function that counts its connections."""
    loop = asyncio.get_running_loop()
    while True:
        metrics.tasks.set(len(asyncio.all_tasks()))
        metrics.bytes_in_flight.set(bytes_in_flight())
        for upstream, count in connections.items():
            for state, value in zip(("active", "idle"), count(), strict=True):
                metrics.child(metrics.upstream_connections, upstream, state).set(value)
        for _ in range(_LAGS_PER_COUNT):
            due = loop.time() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            metrics.loop_lag.observe(max(0.0, loop.time() - due))
