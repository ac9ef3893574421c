"""grpc.health.v1 of our own: the aio servicer that grpcio ships loses the other watchers when one of them leaves.

Answers for `""`, the chat service, `readiness` and `liveness`. Liveness is true while this process answers at all;
the others follow the life cycle. None of them asks the upstream: its trouble is no reason to restart or unlist this
process.
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


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it comes without types
    """Starts as NOT_SERVING."""

    def __init__(self) -> None:
        self._serving = False
        self._ended = False
        self._watchers: set[asyncio.Event] = set()

    def set_serving(self, serving: bool) -> None:
        """Changes the state, and tells every watcher."""
        self._serving = serving
        self._tell()

    def close_watches(self) -> None:
        """Ends every watch, and those that come."""
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        for changed in self._watchers:
            changed.set()

    def _status(self, name: str) -> int:
        if name == LIVENESS or (name in NAMES and self._serving):
            return int(_Status.SERVING)
        return int(_Status.NOT_SERVING if name in NAMES else _Status.SERVICE_UNKNOWN)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        """The state of a service; NOT_FOUND for a name that is none."""
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            names = ", ".join(repr(name) for name in (*NAMES, LIVENESS))
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service: this server has {names}")
        return _Status(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        """The state of a service now and at every change."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        sent: int | None = None
        try:
            while not self._ended:
                changed.clear()
                status = self._status(request.service)
                if status != sent:
                    await context.write(_Status(status=status))
                    sent = status
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    async def List(self, request: health_pb2.HealthListRequest, context: _Context) -> health_pb2.HealthListResponse:
        """The state of every service."""
        statuses = {name: _Status(status=self._status(name)) for name in (*NAMES, LIVENESS)}
        return health_pb2.HealthListResponse(statuses=statuses)
