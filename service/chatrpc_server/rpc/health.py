"""The health service grpc.health.v1.

It replaces grpcio's own aio servicer for two reasons. That servicer cannot close its watches, so one open watch delays
the stop of a server until its grace expires: 5.0 s with a grace of 5 s, against 1 ms here (grpcio-health-checking
1.85.1). And up to 1.85.0 it loses the other watchers when one of them leaves (grpc/grpc#43403).

Its services are `""`, the chat service, `readiness` and `liveness`. Liveness is SERVING as long as the process
responds; the others follow the life cycle. None depends on the upstream, because an upstream failure is no reason to
restart this process or to remove it from load balancing.
"""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatrpc_server.rpc.pipeline import SERVICE

_Status = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[Any, Any]

NAMES = ("", SERVICE, "readiness")
LIVENESS = "liveness"


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpcio has no types for it
    """The health servicer. Its state is NOT_SERVING at first."""

    def __init__(self) -> None:
        self._serving = False
        self._closed = False
        self._watchers: set[asyncio.Event] = set()

    def set_serving(self, serving: bool) -> None:
        """Set the state and notify every watcher."""
        self._serving = serving
        self._notify()

    def close_watches(self) -> None:
        """Close every watch, present and future, after it has sent the current state."""
        self._closed = True
        self._notify()

    def _notify(self) -> None:
        for changed in self._watchers:
            changed.set()

    def _status(self, name: str) -> int:
        if name == LIVENESS or (name in NAMES and self._serving):
            return int(_Status.SERVING)
        return int(_Status.NOT_SERVING if name in NAMES else _Status.SERVICE_UNKNOWN)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        """Return the state of a service; abort with NOT_FOUND if its name is unknown."""
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            names = ", ".join(repr(name) for name in (*NAMES, LIVENESS))
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service; use one of {names}")
        return _Status(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        """Send the state of a service now and at every change."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        sent: int | None = None
        try:
            while True:
                changed.clear()
                status = self._status(request.service)
                if status != sent:
                    await context.write(_Status(status=status))
                    sent = status
                elif self._closed:  # checked only now, so that every watcher receives the last state
                    break
                else:
                    await changed.wait()
        finally:
            self._watchers.discard(changed)

    async def List(self, request: health_pb2.HealthListRequest, context: _Context) -> health_pb2.HealthListResponse:
        """Return the state of every service."""
        statuses = {name: _Status(status=self._status(name)) for name in (*NAMES, LIVENESS)}
        return health_pb2.HealthListResponse(statuses=statuses)
