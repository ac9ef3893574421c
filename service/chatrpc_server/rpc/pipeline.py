"""The one meeting with grpc.aio's interceptor API: it puts the layers around our RPCs and drives every stream.

A stream is written with `context.write` from the RPC's own task, over `aclosing`: handlers that are async generators
are closed by asyncio in another task and Context when a caller cancels during a blocked send, outer layers before
inner ones.
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from chatrpc.v1.chat_service_pb2 import DESCRIPTOR
from chatrpc_server.core.call import Call
from chatrpc_server.core.errors import InvalidRequest, ResponseTooLarge
from chatrpc_server.core.upstream import ChatRequest

SERVICE = DESCRIPTOR.services_by_name["ChatCompletionService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Layer = Callable[[Call, Context], AbstractAsyncContextManager[None]]
"""Something around each call, unary or streaming alike. Raising `ChatError` inside `statuses` ends the call."""

_FORWARDED = ("traceparent", "tracestate")
_REQUEST_ID_CHARACTERS = 128
_HEADER_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
"""Printable ASCII. Callers can send other bytes, which neither HTTP nor our own metadata could carry on."""
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?")
"""W3C Trace Context, level 1: the trace's id, and its flags, of which the lowest bit says that it is kept."""


class Pipeline(grpc.aio.ServerInterceptor):
    """`layers` from the outermost inwards. Calls without a deadline get the default one.

    `unknown` is told of each RPC that nobody serves.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        unknown: Callable[[], None],
        *,
        default_deadline_seconds: float,
        max_message_bytes: int,
        coalesce: bool,
    ) -> None:
        self._layers = layers
        self._unknown = unknown
        self._default_deadline_seconds = default_deadline_seconds
        self._max_message_bytes = max_message_bytes
        self._coalesce = coalesce

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Replaces the handlers of our own service; health and reflection stay as they are."""
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        if handler is None:
            self._unknown()
        if handler is None or service != SERVICE:
            return handler
        wrap = self._streaming if handler.response_streaming else self._unary
        return wrap(method, handler)

    def _unary(self, method: str, handler: Any) -> _Handler:
        async def behavior(data: bytes, context: Context) -> Any:
            async with self._call(method, context) as call:
                response = await handler.unary_unary(_parsed(data, handler, call), call)
                self._check_size(response)
                await _begin(call, context)
                call.messages_sent = 1
                return response

        return grpc.unary_unary_rpc_method_handler(behavior, None, handler.response_serializer)

    def _streaming(self, method: str, handler: Any) -> _Handler:
        async def behavior(data: bytes, context: Context) -> None:
            # A write that fails is one to a caller that has gone: nobody is left to be told.
            with suppress(grpc.aio.InternalError):
                async with (
                    self._call(method, context) as call,
                    aclosing(handler.unary_stream(_parsed(data, handler, call), call)) as batches,
                ):
                    async for batch in batches:
                        if not call.messages_sent:
                            await _begin(call, context)
                        started = time.monotonic()
                        try:
                            for chunk in batch:
                                call.bytes_sent += self._check_size(chunk)
                                await context.write(chunk)
                                call.messages_sent += 1
                        finally:
                            call.writing_seconds += time.monotonic() - started
                    if not call.messages_sent:
                        await _begin(call, context)

        return grpc.unary_stream_rpc_method_handler(behavior, None, handler.response_serializer)

    def _check_size(self, message: Message) -> int:
        # grpc would end the RPC by itself, and no layer would know.
        size = message.ByteSize()
        if size > self._max_message_bytes:
            raise ResponseTooLarge(f"the answer is a message of {size} bytes: {self._max_message_bytes} are allowed")
        return size

    @asynccontextmanager
    async def _call(self, method: str, context: Context) -> AsyncIterator[Call]:
        """Makes the `Call` and enters the layers around it."""
        call = self._arrived(method, context)
        async with AsyncExitStack() as stack:
            for layer in self._layers:
                await stack.enter_async_context(layer(call, context))
            yield call

    def _arrived(self, method: str, context: Context) -> Call:
        metadata = {
            key: value
            for key, value in context.invocation_metadata() or ()
            if isinstance(value, str) and _HEADER_VALUE.fullmatch(value)
        }
        timeout = context.time_remaining()
        remaining = self._default_deadline_seconds if timeout is None else timeout
        request_id = metadata.get("x-request-id", "")
        if not 0 < len(request_id) <= _REQUEST_ID_CHARACTERS:
            request_id = secrets.token_hex(16)
        trace = _TRACEPARENT.fullmatch(metadata.get("traceparent", ""))
        return Call(
            id=request_id,
            method=method,
            started=time.monotonic(),
            deadline=asyncio.get_running_loop().time() + remaining,
            timeout_seconds=timeout,
            forward=[
                ("x-request-id", request_id),
                *((name, metadata[name]) for name in _FORWARDED if name in metadata),
            ],
            coalesce=self._coalesce and metadata.get("x-chatrpc-coalesce") != "off",
            trace_id=trace[1] if trace else "",
            sampled=bool(trace and int(trace[2], 16) & 1),
        )


def _parsed(data: bytes, handler: Any, call: Call) -> ChatRequest:
    """The request. Parsed in here, not by grpc, so that the layers see it fail."""
    try:
        request: ChatRequest = handler.request_deserializer(data)
    except DecodeError:
        raise InvalidRequest("request", f"its {len(data)} bytes are no CreateChatCompletionRequest") from None
    call.model = request.model
    return request


async def _begin(call: Call, context: Context) -> None:
    """Sends the initial metadata, no earlier than the first message: a call without it can still be retried."""
    call.first_message_at = time.monotonic()
    await context.send_initial_metadata([("x-request-id", call.id), *call.response_metadata])
