"""The private names of grpcio that `grpc_core` uses, and whether this grpcio has them.

If one of them is absent or has other parameters, the service uses public names only. It then needs more CPU for a call,
and a request can end its accept loop; see `accept_loop`.
"""

import inspect
import pkgutil

NAMES = {
    "grpc.aio._server:Server": "thread_pool, generic_handlers, interceptors, options, maximum_concurrent_rpcs,"
    " compression",
    "grpc._cython.cygrpc:get_working_loop": "",
    "grpc._cython.cygrpc:_handle_rpc": "method_name, method_resolver, interceptors, rpc_state, loop,"
    " concurrency_exceeded",
    "grpc._cython.cygrpc:_schedule_rpc_coro": "rpc_coro, rpc_state, loop, method_name",
    "grpc._cython.cygrpc:_RequestCallError": None,
    "grpc._cython.cygrpc:AioServer._make_request_call_future": "self, method_bytes",
    "grpc._cython.cygrpc:AioServer._request_call": "self",
    "grpc._cython.cygrpc:AioServer._request_registered_call": "self, method",
    "grpc._cython.cygrpc:AioServer.add_registered_method_handlers": None,
    "grpc._cython.cygrpc:AioServer._serving_task_crash_handler": "self, task",
    "grpc._cython.cygrpc:AioServer.is_running": "self",
    "grpc._cython.cygrpc:AioServer.shutdown": "self, grace",
}
"""Each name with its parameters. None: not checked, because it is no function of Python."""


def missing() -> list[str]:
    """Return the private names that are absent in this grpcio or have other parameters."""
    return [name for name, parameters in NAMES.items() if not _exists(name, parameters)]


def _exists(name: str, parameters: str | None) -> bool:
    try:
        found = pkgutil.resolve_name(name)
        return parameters is None or ", ".join(inspect.signature(found).parameters) == parameters
    except (ImportError, AttributeError, TypeError, ValueError):
        return False
