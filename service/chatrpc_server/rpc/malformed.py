"""Rejects messages of health and reflection that cannot be parsed or do not arrive.

grpc would fail these RPCs with UNKNOWN and log a traceback for each: any caller could fill the log. The chat service
needs no such protection, because the pipeline parses its requests.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError

from chatrpc_server.core.errors import ChatError, Overloaded
from chatrpc_server.rpc.layers.errors import CODES
from chatrpc_server.rpc.pipeline import SERVICE, Context
from chatrpc_server.rpc.receiving import Receiver

_Data = TypeVar("_Data", bytes, bytes | None)
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class RejectMalformed(grpc.aio.ServerInterceptor):
    """The interceptor that fails malformed RPCs with INVALID_ARGUMENT.

    `count_rejected` receives the reason of each rejection, such as `malformed`. `count_unknown` is called for each RPC
    whose method does not exist.
    """

    def __init__(
        self,
        receiver: Receiver,
        count_rejected: Callable[[str], None],
        count_unknown: Callable[[], None] = lambda: None,
    ) -> None:
        self._receiver = receiver
        self._count_rejected = count_rejected
        self._count_unknown = count_unknown

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Wrap the handlers of all services but the chat service."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:
            self._count_unknown()
        if handler is None or method.startswith(f"/{SERVICE}/"):
            return handler
        if handler.request_streaming:
            return self._stream_stream(method, handler)
        return self._unary_stream(method, handler) if handler.response_streaming else self._unary_unary(method, handler)

    # All handlers stream requests, because grpc.aio receives the request of another kind before it runs the handler.

    def _unary_unary(self, method: str, handler: Any) -> _Handler:
        async def behavior(_: object, context: Context) -> Any:
            data = await self._receive(self._receiver.only, context)
            return await handler.unary_unary(await self._parse(data, method, handler, context), context)

        return grpc.stream_unary_rpc_method_handler(behavior, None, handler.response_serializer)

    def _unary_stream(self, method: str, handler: Any) -> _Handler:
        async def behavior(_: object, context: Context) -> None:
            data = await self._receive(self._receiver.only, context)
            await handler.unary_stream(await self._parse(data, method, handler, context), context)

        return grpc.stream_stream_rpc_method_handler(behavior, None, handler.response_serializer)

    def _stream_stream(self, method: str, handler: Any) -> _Handler:
        async def requests(context: Context) -> AsyncIterator[Any]:
            while (data := await self._receive(self._receiver.next, context)) is not None:
                yield await self._parse(data, method, handler, context)

        async def behavior(_: object, context: Context) -> None:
            async with aclosing(handler.stream_stream(requests(context), context)) as responses:
                async for response in responses:
                    await context.write(response)

        return grpc.stream_stream_rpc_method_handler(behavior, None, handler.response_serializer)

    async def _receive(self, receive: Callable[[Context], Awaitable[_Data]], context: Context) -> _Data:
        try:
            return await receive(context)
        except ChatError as error:
            if isinstance(error, Overloaded):
                self._count_rejected(error.limit)
            await context.abort(CODES[error.reason], error.message)

    async def _parse(self, data: bytes, method: str, handler: Any, context: Context) -> Any:
        try:
            return handler.request_deserializer(data)
        except DecodeError:
            self._count_rejected("malformed")
            problem = f"its {len(data)} bytes are no message of {method}; use the stubs of this service"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"request: {problem}")
