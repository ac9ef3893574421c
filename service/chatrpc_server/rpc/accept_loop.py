"""Creates gRPC servers whose accept loop no request can end, and reports if one ends nevertheless.

grpc.aio (grpcio 1.85.1) decodes the path of each call to an unregistered method as UTF-8 inside its accept loop. One
HEADERS frame with another byte in `:path` raises there: the loop ends, and connections are refused while the process
lives. `unregistered.Server` keeps such calls out of that loop.

That server requires private names of grpcio. If one of them is absent or has other parameters, the server is
grpc.aio's own: a request can end its loop, `failure` reports it, and the process exits.
"""

import asyncio
import inspect
import pkgutil
from collections.abc import Sequence
from typing import Any, cast

import grpc

_POLL_SECONDS = 1.0
"""Interval of looking at grpc.aio's own server, which reports the end of its loop only if it is asked."""

PRIVATE_NAMES = {
    "grpc.aio._server:Server": "thread_pool, generic_handlers, interceptors, options, maximum_concurrent_rpcs,"
    " compression",
    "grpc._cython.cygrpc:get_working_loop": "",
    "grpc._cython.cygrpc:_handle_rpc": "method_name, method_resolver, interceptors, rpc_state, loop,"
    " concurrency_exceeded",
    "grpc._cython.cygrpc:_schedule_rpc_coro": "rpc_coro, rpc_state, loop, method_name",
    "grpc._cython.cygrpc:_RequestCallError": None,
    "grpc._cython.cygrpc:AioServer._make_request_call_future": "self, method_bytes",
    "grpc._cython.cygrpc:AioServer._request_call": "self",
    "grpc._cython.cygrpc:AioServer._serving_task_crash_handler": "self, task",
    "grpc._cython.cygrpc:AioServer.is_running": "self",
    "grpc._cython.cygrpc:AioServer.shutdown": "self, grace",
}
"""The private names of grpcio that `unregistered` uses, with their parameters."""


def missing_names() -> list[str]:
    """Return the private names that are absent in this grpcio or have other parameters."""
    return [name for name, parameters in PRIVATE_NAMES.items() if not _exists(name, parameters)]


def _exists(name: str, parameters: str | None) -> bool:
    try:
        found = pkgutil.resolve_name(name)
        return parameters is None or ", ".join(inspect.signature(found).parameters) == parameters
    except (ImportError, AttributeError, TypeError, ValueError):
        return False


def create(interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, Any]]) -> grpc.aio.Server:
    """Return a server whose loop no request can end if this grpcio allows it, else grpc.aio's own."""
    if missing_names():
        return grpc.aio.server(interceptors=interceptors, options=options)
    from chatrpc_server.rpc import unregistered  # here, because the private names exist

    return cast("grpc.aio.Server", unregistered.Server(interceptors, options))  # the stubs hide its base class


async def failure(server: grpc.aio.Server) -> BaseException | None:
    """Wait until the accept loop has ended; return its error. None: the server was stopped."""
    failed: asyncio.Future[BaseException] | None = getattr(server, "failed", None)
    if failed:
        return await asyncio.shield(failed)
    try:
        while await server.wait_for_termination(_POLL_SECONDS):
            pass
    except Exception as error:
        return error
    return None
