"""The only use of grpc.aio's interceptor API: enters the layers around each RPC and writes every stream.

A stream is written with `context.write` from the RPC's own task, inside `aclosing`. If the handler were an async
generator and the caller cancelled during a blocked send, asyncio would close it in another task and Context, outer
layers before inner ones.
"""

import asyncio
import logging
import re
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from chatrpc.v1.chat_service_pb2 import DESCRIPTOR
from chatrpc_server.core import wire
from chatrpc_server.core.call import Call, UpstreamIdentity
from chatrpc_server.core.errors import InvalidRequest, ResponseTooLarge
from chatrpc_server.core.upstream import ChatRequest
from chatrpc_server.process import large_work

log = logging.getLogger(__name__)

SERVICE = DESCRIPTOR.services_by_name["ChatCompletionService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Layer = Callable[[Call, Context], AbstractAsyncContextManager[None]]
"""A context manager around each call, unary or streaming. `ChatError` raised inside `ErrorStatus` fails the call."""
_Respond: TypeAlias = Callable[[Any, ChatRequest, Call, Context], Awaitable[None]]

_FORWARDED = ("traceparent", "tracestate")
_LARGE_BYTES = 64 * 1024
"""Size from which a message of a stream counts as bytes in flight while its caller does not read it."""
_CREDENTIALS = frozenset({"authorization", "api-key", "x-api-key"})
"""Metadata with which callers try to identify themselves."""
_REQUEST_ID_CHARACTERS = 128
_HEADER_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
"""Printable ASCII. Callers can send other bytes, which neither HTTP headers nor gRPC metadata can carry."""
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?")
"""W3C Trace Context, level 1. Groups: the trace id and the flags, whose lowest bit is `sampled`."""


class Pipeline(grpc.aio.ServerInterceptor):
    """The interceptor that runs each RPC inside `layers`, outermost first. Calls without a deadline get the default.

    `count_unknown` is called for each RPC whose method does not exist. `forward_metadata` are the keys that become the
    upstream's headers; `key_from_metadata` is the key of a caller's own upstream key, or empty.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        count_unknown: Callable[[], None],
        *,
        default_deadline_seconds: float,
        max_message_bytes: int,
        max_request_elements: int,
        receive: Callable[[Context], Awaitable[bytes]],
        coalesce: bool,
        default_upstream: UpstreamIdentity,
        forward_metadata: Sequence[str] = (),
        key_from_metadata: str = "",
    ) -> None:
        self._layers = layers
        self._count_unknown = count_unknown
        self._default_deadline_seconds = default_deadline_seconds
        self._max_message_bytes = max_message_bytes
        self._max_request_elements = max_request_elements
        self._receive = receive
        self._coalesce = coalesce
        self._default_upstream = default_upstream
        self._wrapped_handlers: dict[str, _Handler] = {}
        self._forwarded = (*_FORWARDED, *forward_metadata)
        self._key_from_metadata = key_from_metadata
        self._credentials = _CREDENTIALS - {key_from_metadata}
        self._credentials_are_new = True

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Wrap the handlers of the chat service; health and reflection stay unchanged."""
        path = handler_call_details.method
        if path in self._wrapped_handlers:
            return self._wrapped_handlers[path]
        handler = await continuation(handler_call_details)
        service, _, method = path.lstrip("/").partition("/")
        if handler is None:
            self._count_unknown()
        if handler is None or service != SERVICE:
            return handler
        respond = self._stream if handler.response_streaming else self._respond
        self._wrapped_handlers[path] = self._wrapped(method, handler, respond)
        return self._wrapped_handlers[path]

    def _wrapped(self, method: str, handler: Any, respond: "_Respond") -> _Handler:
        """Return the handler that gRPC runs, streaming in both directions, with bytes as messages.

        For any other kind grpc.aio receives the request before it runs the handler, and sends a unary response after,
        so no layer would cover a half-sent request or an unread response.
        """

        async def behavior(messages: object, context: Context) -> None:
            try:
                async with self._call(method, context) as call:
                    await respond(handler, await self._request(handler, call, context), call, context)
            except BaseException as error:
                _clear_frames(error)
                del messages, context  # in this frame, which the error gets when it leaves
                # A write fails only if the caller has disconnected, so no status can be sent.
                if not isinstance(error, grpc.aio.InternalError):
                    raise

        return grpc.stream_stream_rpc_method_handler(behavior)

    async def _request(self, handler: Any, call: Call, context: Context) -> ChatRequest:
        started = time.monotonic()
        try:
            data = await self._receive(context)
        finally:
            call.receiving_seconds = time.monotonic() - started
        call.messages_received = 1
        call.hold(len(data))
        return await self._parse(data, handler, call)

    async def _respond(self, handler: Any, request: ChatRequest, call: Call, context: Context) -> None:
        data = self._serialized(await handler.unary_unary(request, call), handler)
        await _send_initial_metadata(call, context)
        started = time.monotonic()
        try:
            await context.write(data)
        finally:
            call.writing_seconds = time.monotonic() - started
        call.messages_sent = 1

    async def _stream(self, handler: Any, request: ChatRequest, call: Call, context: Context) -> None:
        async with aclosing(handler.unary_stream(request, call)) as batches:
            async for batch in batches:
                if not call.messages_sent:
                    await _send_initial_metadata(call, context)
                started = time.monotonic()
                try:
                    for chunk in batch:
                        data = self._serialized(chunk, handler)
                        call.bytes_sent += len(data)
                        if len(data) < _LARGE_BYTES:
                            await context.write(data)
                        else:
                            call.hold(len(data))
                            await context.write(data)
                            call.release(len(data))
                        call.messages_sent += 1
                finally:
                    call.writing_seconds += time.monotonic() - started
            if not call.messages_sent:
                await _send_initial_metadata(call, context)

    def _serialized(self, message: Message, handler: Any) -> bytes:
        # Serialized here and not in grpc, which would fail the RPC for its size without the layers noticing.
        data: bytes = handler.response_serializer(message)
        if len(data) > self._max_message_bytes:
            problem = f"the response message has {len(data)} bytes, more than {self._max_message_bytes}"
            raise ResponseTooLarge(f"{problem}; raise limits.max_message_bytes")
        return data

    async def _parse(self, data: bytes, handler: Any, call: Call) -> ChatRequest:
        """Parse the request here and not in grpc, so that the layers see a failure."""
        try:
            # An element takes two bytes or more. Few requests are large enough for a count.
            if len(data) < min(large_work.LARGE_BYTES, 2 * self._max_request_elements):
                request: ChatRequest = handler.request_deserializer(data)
            else:
                request = ChatRequest()
                await large_work.run(len(data), wire.parse, request, data, self._max_request_elements)
        except DecodeError:
            problem = f"its {len(data)} bytes are no CreateChatCompletionRequest; use the stubs of chatrpc.v1"
            raise InvalidRequest("request", problem) from None
        except wire.TooManyElements as error:
            problem = f"has {error.count} elements or more; all lists of a request can have {error.limit} in total"
            raise InvalidRequest(error.path, f"{problem}; send fewer or raise limits.max_request_elements") from None
        call.model = request.model
        call.request_bytes = len(data)
        return request

    @asynccontextmanager
    async def _call(self, method: str, context: Context) -> AsyncIterator[Call]:
        """Create the `Call` and enter the layers around it."""
        call = self._new_call(method, context)
        async with AsyncExitStack() as stack:
            for layer in self._layers:
                await stack.enter_async_context(layer(call, context))
            yield call

    def _new_call(self, method: str, context: Context) -> Call:
        metadata = {
            key: value
            for key, value in context.invocation_metadata() or ()
            if isinstance(value, str) and _HEADER_VALUE.fullmatch(value)
        }
        if self._credentials_are_new and not self._credentials.isdisjoint(metadata):
            self._credentials_are_new = False
            log.warning(
                "callers send credentials, which do not restrict anything; use a network policy or client certificates",
                extra={"event": "credentials_ignored"},
            )
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
                *((name, metadata[name]) for name in self._forwarded if name in metadata),
            ],
            callers_key=self._callers_key(metadata) if self._key_from_metadata else "",
            coalesce=self._coalesce and metadata.get("x-chatrpc-coalesce") != "off",
            trace_id=trace[1] if trace else "",
            sampled=bool(trace and int(trace[2], 16) & 1),
            upstream=self._default_upstream,
        )

    def _callers_key(self, metadata: Mapping[str, str]) -> str:
        """Return the caller's key for the upstream, without the word before it; empty if there is none."""
        key = metadata.get(self._key_from_metadata, "")
        scheme, _, rest = key.partition(" ")
        return rest.strip() if scheme.lower() == "bearer" else key


def _clear_frames(error: BaseException | None) -> None:
    """Free the local variables in an error's frames, among them messages and gRPC's call.

    `AsyncExitStack` and gRPC leave cycles of the error and its frames, which only the garbage collector would free.
    """
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


async def _send_initial_metadata(call: Call, context: Context) -> None:
    """Send the initial metadata. Call it just before the first message, because gRPC retries no call after it."""
    call.first_message_at = time.monotonic()
    await context.send_initial_metadata([("x-request-id", call.id), *call.response_metadata])
