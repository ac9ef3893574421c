"""A gRPC server that accepts calls to unregistered methods apart from grpc.aio's accept loop; see `accept_loop`.

grpc.aio's loop decodes the path of such calls, and raises if it is not UTF-8. grpc shows this path to Python nowhere
else. So a task of this server accepts them, reads no path, and responds UNIMPLEMENTED. All services must register their
methods, as generated code does; the loop accepts calls to these and decodes no path that a caller has sent.

The futures of calls are shielded, because a loop that fails cancels them. grpc's core would then write the next call
into memory that they have freed (seen as a segmentation fault).

This is the only use of private names of grpcio in the service.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server

_METHOD = "an unknown method"
"""The name of all unregistered methods in grpc's log."""


class Server(_server.Server):
    """grpc.aio's server around another core."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, Any]]) -> None:
        # Not super().__init__, because grpc never frees the core that it would create.
        self._loop = cygrpc.get_working_loop()
        self._server = _Core(self._loop, tuple(interceptors), tuple(options))
        self.failed: asyncio.Future[BaseException] = self._server.failed
        """The error of the accept loop, after it has ended without a stop."""


def _shielded(accepting: Awaitable[Any]) -> "asyncio.Future[Any]":
    """Shield a future of a call. Read its error, because asyncio logs unread ones and a stop cancels the shield."""
    task = asyncio.ensure_future(accepting)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    return asyncio.shield(task)


class _NoMethods:
    """A resolver of grpc.aio that finds no method."""

    def resolve_handler(self, _: object) -> None:
        """Return that no handler exists."""


class _Core(cygrpc.AioServer):  # type: ignore[misc]
    """grpc.aio's core, of which two parts are replaced: accepting unregistered methods, and the end of the loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        interceptors: tuple[grpc.aio.ServerInterceptor, ...],
        options: tuple[tuple[str, Any], ...],
    ) -> None:
        super().__init__(loop, None, (), interceptors, options, None)
        self.event_loop, self.all_interceptors = loop, interceptors
        self.failed: asyncio.Future[BaseException] = loop.create_future()
        self.unknown_calls: set[asyncio.Task[None]] = set()

    def _make_request_call_future(self, method_bytes: bytes | None) -> Any:
        """Return a future of the next call to a registered method. None stands for the others: none ever arrives."""
        if method_bytes is None:
            return self.event_loop.create_task(self.refuse_unknown_methods())
        return _shielded(super()._make_request_call_future(method_bytes))

    async def refuse_unknown_methods(self) -> None:
        """Accept calls to unregistered methods until the server stops. Never return, because a result is a call."""
        while True:
            try:
                call = await _shielded(self._request_call())
            except cygrpc._RequestCallError:
                if self.is_running():
                    continue
                raise  # the base class expects it at a stop
            response = cygrpc._handle_rpc(_METHOD, _NoMethods(), self.all_interceptors, call, self.event_loop, False)
            serving = cygrpc._schedule_rpc_coro(response, call, self.event_loop, _METHOD)
            task = self.event_loop.create_task(serving)
            self.unknown_calls.add(task)
            task.add_done_callback(self.unknown_calls.discard)

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
