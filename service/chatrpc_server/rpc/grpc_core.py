"""A gRPC server that accepts calls apart from grpc.aio's accept loop.

grpc.aio's loop decodes the path of calls to unregistered methods, and raises if it is not UTF-8; see `accept_loop`.
grpc shows this path to Python nowhere else. So a task for each method accepts its calls, and one for all unregistered
methods reads no path and responds UNIMPLEMENTED. All services must register their methods, as generated code does.

This is the only use of private names of grpcio in the service; `private_names` lists them.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server

_UNKNOWN = "an unknown method"
"""The name of all unregistered methods in grpc's log."""


class Server(_server.Server):
    """grpc.aio's server around another core."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, Any]]) -> None:
        # Not super().__init__, because grpc never frees the core that it would create.
        self._loop = cygrpc.get_working_loop()
        self._server = _Core(self._loop, tuple(interceptors), tuple(options))
        self.failed: asyncio.Future[BaseException] = self._server.failed
        """The error of the accept loop, after it has ended without a stop."""


class _Methods:
    """A resolver of grpc.aio that knows the registered methods."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def resolve_handler(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method. None if it is not registered."""
        return self.handlers.get(details.method)


class _Core(cygrpc.AioServer):  # type: ignore[misc]
    """grpc.aio's core, of which two parts are replaced: accepting calls, and the end of the accept loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        interceptors: tuple[grpc.aio.ServerInterceptor, ...],
        options: tuple[tuple[str, Any], ...],
    ) -> None:
        super().__init__(loop, None, (), interceptors, options, None)
        self.event_loop, self.all_interceptors = loop, interceptors
        self.failed: asyncio.Future[BaseException] = loop.create_future()
        self.methods = _Methods()
        self.calls: set[asyncio.Task[None]] = set()

    def add_registered_method_handlers(self, handlers: dict[str, Any]) -> None:
        """Add the handlers of a service."""
        super().add_registered_method_handlers(handlers)
        self.methods.handlers.update(handlers)

    def _make_request_call_future(self, method: bytes | None) -> Any:
        """Return a future that never has a result, because its task accepts all calls. None: unregistered methods.

        It is shielded, because a loop that fails cancels it. grpc's core would then write the next call into memory
        that was freed with the task (seen as a segmentation fault).
        """
        task = self.event_loop.create_task(self.accept(method))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # asyncio logs unread errors
        return asyncio.shield(task)

    async def accept(self, method: bytes | None) -> None:
        """Accept calls to a method until the server stops."""
        name = _UNKNOWN if method is None else method.decode()
        while True:
            try:
                # No variable for the call, which would keep it until the next one.
                self.start_call(
                    name, await (self._request_call() if method is None else self._request_registered_call(method))
                )
            except cygrpc._RequestCallError:
                if not self.is_running():
                    raise  # the base class expects it at a stop

    def start_call(self, name: str, call: Any) -> None:
        """Start the task of an accepted call, as the base class does."""
        response = cygrpc._handle_rpc(name, self.methods, self.all_interceptors, call, self.event_loop, False)
        serving = cygrpc._schedule_rpc_coro(response, call, self.event_loop, name)
        task = self.event_loop.create_task(serving)
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)

    def _serving_task_crash_handler(self, task: "asyncio.Task[None]") -> None:
        """Report an end of the accept loop that no stop requested."""
        if self.is_running() and not task.cancelled():
            self.failed.set_result(task.exception() or RuntimeError("the accept loop has returned"))

    async def shutdown(self, grace: float | None) -> None:
        """Stop the server. After a failure of the loop, the base class raises its error once before it stops."""
        try:
            await super().shutdown(grace)
        except Exception:
            if not self.failed.done():
                raise
            await super().shutdown(grace)
