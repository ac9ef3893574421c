"""The two clients, for threads and for asyncio. The modules beside this one hold the code that both share."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import grpc

from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc.v1.chat_response_pb2 import CreateChatCompletionResponse, CreateChatCompletionStreamResponse
from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_client import channel, requests
from chatrpc_client.errors import from_rpc_error
from chatrpc_client.metadata import Metadata
from chatrpc_client.snapshot import Snapshot, text_deltas

Messages = Iterable[ChatMessage | Mapping[str, Any]]
Tls = bool | str | os.PathLike[str] | grpc.ChannelCredentials
Cert = tuple[str | os.PathLike[str], str | os.PathLike[str]]

DEFAULT_TIMEOUT_SECONDS = 600.0
_LONGEST_SECONDS = 1e8
"""A cap, because gRPC treats a deadline that is too far away as one that has passed."""


class _CallDefaults:
    """Target, credentials, key and timeout of one client, for each of its calls."""

    def __init__(self, target: str | None, api_key: str | None, tls: Tls, cert: Cert | None, timeout: float) -> None:
        self.target = channel.choose_target(target)
        self._credentials = channel.make_credentials(tls, cert)
        self._authorization = channel.make_authorization(api_key)
        self._timeout = _seconds(timeout)
        self.closed = False

    def open_channel(self, library: Any) -> Any:
        """Return a new channel of the module `grpc` or `grpc.aio`."""
        if self._credentials is None:
            return library.insecure_channel(self.target, channel.OPTIONS)
        return library.secure_channel(self.target, self._credentials, channel.OPTIONS)

    def options(self, timeout: float | None, headers: Mapping[str, str] | None) -> dict[str, Any]:
        """Return a call's deadline and metadata. Raises ValueError if one is invalid or the client is closed."""
        if self.closed:
            raise ValueError("client: it is closed; create a new one")
        seconds = self._timeout if timeout is None else _seconds(timeout)
        return {"timeout": seconds, "metadata": channel.make_metadata(headers, self._authorization)}


def _seconds(timeout: float) -> float:
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout: {timeout!r} is invalid; use seconds, more than 0 and finite")
    return min(timeout, _LONGEST_SECONDS)


class Client:
    """A thread-safe connection to chatrpc. Share one between threads; close it, or use it with `with`.

    `target` is host:port, else the variable CHATRPC_TARGET, else 127.0.0.1:50051. `api_key`, else the variable
    CHATRPC_API_KEY, is sent as `authorization: Bearer …`. `tls`: True trusts the system's authorities, a path those in
    that file; or pass credentials of your own. `cert` has the paths of a client certificate and its key in PEM, and
    implies TLS. `timeout` is in seconds, for each call. Raises ValueError if the target, the key or the timeout is
    invalid, OSError if a file cannot be read.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        api_key: str | None = None,
        tls: Tls = False,
        cert: Cert | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._defaults = _CallDefaults(target, api_key, tls, cert, timeout)
        self._channel = self._defaults.open_channel(grpc)
        self._stub = ChatCompletionServiceStub(self._channel)

    def complete(
        self,
        *,
        model: str,
        messages: Messages,
        timeout: float | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **parameters: Any,
    ) -> CreateChatCompletionResponse:
        """Return the complete response. Raises `ChatError`.

        `parameters` are those of OpenAI's `chat.completions.create`; unknown ones reach the upstream too.
        """
        return self.complete_with_metadata(
            model=model, messages=messages, timeout=timeout, extra_headers=extra_headers, **parameters
        )[0]

    def complete_with_metadata(
        self,
        *,
        model: str,
        messages: Messages,
        timeout: float | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **parameters: Any,
    ) -> tuple[CreateChatCompletionResponse, Metadata]:
        """Return the complete response and its metadata: request ids and rate limits. See `complete`."""
        request = requests.build_request(model, messages, parameters)
        options = self._defaults.options(timeout, extra_headers)
        try:
            response, call = self._stub.CreateChatCompletion.with_call(request, **options)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return response, Metadata.of(call.initial_metadata())

    def stream(
        self,
        *,
        model: str,
        messages: Messages,
        timeout: float | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **parameters: Any,
    ) -> "Stream":
        """Return the response as a stream. Accepts the arguments of `complete`."""
        request = requests.build_request(model, messages, parameters)
        return Stream(self._stub.CreateChatCompletionStream(request, **self._defaults.options(timeout, extra_headers)))

    def close(self) -> None:
        """Close the connection and cancel its calls."""
        self._defaults.closed = True
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Stream:
    """An iterator over the messages of one response. Close it, or use it with `with`.

    It ends without an exception only if the response is complete. Closing it early cancels the call, up to the model.
    """

    def __init__(self, call: Any) -> None:
        self.snapshot = Snapshot()
        """The response received so far: its text, its usage, its message for the next turn."""
        self._call = call

    def metadata(self) -> Metadata:
        """Return request ids and rate limits. Wait for the first message, which they precede."""
        return Metadata.of(self._call.initial_metadata())

    def text_stream(self) -> Iterator[str]:
        """Yield the pieces of the first choice's text."""
        for chunk in self:
            yield from text_deltas(chunk)

    def close(self) -> None:
        """Cancel the call."""
        self._call.cancel()

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> CreateChatCompletionStreamResponse:
        try:
            chunk: CreateChatCompletionStreamResponse = next(self._call)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        self.snapshot.chunks.append(chunk)
        return chunk

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """`Client` for asyncio; create it inside the running loop."""

    def __init__(
        self,
        target: str | None = None,
        *,
        api_key: str | None = None,
        tls: Tls = False,
        cert: Cert | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._defaults = _CallDefaults(target, api_key, tls, cert, timeout)
        self._channel = self._defaults.open_channel(grpc.aio)
        self._stub: Any = ChatCompletionServiceStub(self._channel)

    async def complete(
        self,
        *,
        model: str,
        messages: Messages,
        timeout: float | None = None,  # becomes gRPC's deadline, which the service receives
        extra_headers: Mapping[str, str] | None = None,
        **parameters: Any,
    ) -> CreateChatCompletionResponse:
        """Return the complete response. Raises `ChatError`. Accepts the arguments of `Client.complete`."""
        response, _ = await self.complete_with_metadata(
            model=model, messages=messages, timeout=timeout, extra_headers=extra_headers, **parameters
        )
        return response

    async def complete_with_metadata(
        self,
        *,
        model: str,
        messages: Messages,
        timeout: float | None = None,  # see `complete`
        extra_headers: Mapping[str, str] | None = None,
        **parameters: Any,
    ) -> tuple[CreateChatCompletionResponse, Metadata]:
        """Return the complete response and its metadata: request ids and rate limits. See `Client.complete`."""
        request = requests.build_request(model, messages, parameters)
        call = self._stub.CreateChatCompletion(request, **self._defaults.options(timeout, extra_headers))
        async with _typed_errors(call):
            response: CreateChatCompletionResponse = await call
            return response, Metadata.of(await call.initial_metadata())

    def stream(
        self,
        *,
        model: str,
        messages: Messages,
        timeout: float | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **parameters: Any,
    ) -> "AsyncStream":
        """Return the response as a stream. Accepts the arguments of `Client.complete`."""
        request = requests.build_request(model, messages, parameters)
        options = self._defaults.options(timeout, extra_headers)
        return AsyncStream(self._stub.CreateChatCompletionStream(request, **options))

    async def close(self) -> None:
        """Close the connection and cancel its calls."""
        self._defaults.closed = True
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class AsyncStream:
    """`Stream` for asyncio."""

    def __init__(self, call: Any) -> None:
        self.snapshot = Snapshot()
        """The response received so far: its text, its usage, its message for the next turn."""
        self._call = call
        self._chunks = aiter(call)

    async def metadata(self) -> Metadata:
        """Return request ids and rate limits. Wait for the first message, which they precede."""
        return Metadata.of(await self._call.initial_metadata())

    async def text_stream(self) -> AsyncIterator[str]:
        """Yield the pieces of the first choice's text."""
        async for chunk in self:
            for piece in text_deltas(chunk):
                yield piece

    async def close(self) -> None:
        """Cancel the call."""
        self._call.cancel()

    def __aiter__(self) -> "AsyncStream":
        return self

    async def __anext__(self) -> CreateChatCompletionStreamResponse:
        async with _typed_errors(self._call):
            try:
                chunk: CreateChatCompletionStreamResponse = await anext(self._chunks)
            except StopAsyncIteration:
                # grpc.aio also stops the iteration of a call that has failed or was cancelled before.
                if await self._call.code() is not grpc.StatusCode.OK:
                    raise await _failure(self._call) from None
                raise
        self.snapshot.chunks.append(chunk)
        return chunk

    async def __aenter__(self) -> "AsyncStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


@asynccontextmanager
async def _typed_errors(call: Any) -> AsyncIterator[None]:
    """Context manager around the wait for a call; raises the call's failure as `ChatError`."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    except asyncio.CancelledError:
        # grpc.aio raises this also if another task has closed the call. Then this task is not being cancelled.
        task = asyncio.current_task()
        if not call.cancelled() or (task and task.cancelling()):
            raise
        raise from_rpc_error(await _failure(call)) from None


async def _failure(call: Any) -> grpc.aio.AioRpcError:
    """Return the error of a call that has failed."""
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )
