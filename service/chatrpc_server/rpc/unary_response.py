"""Sends the response of a unary RPC. If this grpcio allows it, the status is included: a tenth less CPU a call."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from chatrpc_server.rpc import private_names

_Context = grpc.aio.ServicerContext[Any, Any]
_Metadata = Sequence[tuple[str, str | bytes]]


async def _send(context: _Context, metadata: _Metadata, message: bytes) -> None:
    await context.send_initial_metadata(metadata)
    await context.write(message)


INCLUDES_STATUS = not private_names.missing()
"""Whether `send` sends the status OK too. The handler must raise `CancelledError` after it."""

send: Callable[[_Context, _Metadata, bytes], Awaitable[None]] = _send
if INCLUDES_STATUS:
    from chatrpc_server.rpc import grpc_core  # here, because the private names exist

    send = grpc_core.send_response
