"""Creates gRPC servers whose accept loop no request can end, and reports if one ends nevertheless.

grpc.aio (grpcio 1.85.1) decodes the path of each call to an unregistered method as UTF-8 inside its accept loop. One
HEADERS frame with another byte in `:path` raises there: the loop ends, and connections are refused while the process
lives. `grpc_core.Server` keeps such calls out of that loop.

That server requires private names of grpcio. If they are missing, the server is grpc.aio's own: a request can end its
loop, `failure` reports it, and the process exits.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import grpc

from chatrpc_server.rpc import private_names

_POLL_SECONDS = 1.0
"""Interval of looking at grpc.aio's own server, which reports the end of its loop only if it is asked."""


def create(interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, Any]]) -> grpc.aio.Server:
    """Return a server whose loop no request can end if this grpcio allows it, else grpc.aio's own."""
    if private_names.missing():
        return grpc.aio.server(interceptors=interceptors, options=options)
    from chatrpc_server.rpc import grpc_core  # here, because the private names exist

    return cast("grpc.aio.Server", grpc_core.Server(interceptors, options))  # the stubs hide its base class


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
