"""Rejects messages of health and reflection that cannot be parsed.

grpc would fail these RPCs with UNKNOWN and log a traceback for each: any caller could fill the log. The chat service
needs no such protection, because the pipeline parses its requests.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from chatrpc_server.rpc.pipeline import SERVICE, Context

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class RejectMalformed(grpc.aio.ServerInterceptor):
    """The interceptor that fails malformed RPCs with INVALID_ARGUMENT.

    `count_malformed` is called for each, and `count_unknown` for each RPC whose method does not exist.
    """

    def __init__(self, count_malformed: Callable[[], None], count_unknown: Callable[[], None] = lambda: None) -> None:
        self._count_malformed = count_malformed
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

    def _unary_unary(self, method: str, handler: Any) -> _Handler:
        async def behavior(data: bytes, context: Context) -> Any:
            return await handler.unary_unary(await self._parse(data, method, handler, context), context)

        return grpc.unary_unary_rpc_method_handler(behavior, None, handler.response_serializer)

    def _unary_stream(self, method: str, handler: Any) -> _Handler:
        async def behavior(data: bytes, context: Context) -> None:
            await handler.unary_stream(await self._parse(data, method, handler, context), context)

        return grpc.unary_stream_rpc_method_handler(behavior, None, handler.response_serializer)

    def _stream_stream(self, method: str, handler: Any) -> _Handler:
        async def requests(context: Context, messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
            async for data in messages:
                yield await self._parse(data, method, handler, context)

        async def behavior(messages: AsyncIterator[bytes], context: Context) -> None:
            async with aclosing(handler.stream_stream(requests(context, messages), context)) as responses:
                async for response in responses:
                    await context.write(response)

        return grpc.stream_stream_rpc_method_handler(behavior, None, handler.response_serializer)

    async def _parse(self, data: bytes, method: str, handler: Any, context: Context) -> Any:
        try:
            return handler.request_deserializer(data)
        except DecodeError:
            self._count_malformed()
            problem = f"its {len(data)} bytes are no message of {method}; use the stubs of this service"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"request: {problem}")
