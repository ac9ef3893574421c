"""One attempt at an OpenAI-compatible `POST {base_url}/chat/completions`: implements `core.upstream.Upstream`.

It talks to a transport without a client around it: redirects, cookies, authentication flows and decompression are what
a client adds, and none of them is wanted here (figures in docs/performance.md).
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import httpx

from chatrpc_server import __version__
from chatrpc_server.core.call import Call, Headers
from chatrpc_server.core.errors import ErrorResponse, InvalidResponse, TimedOut, Truncated, Unreachable
from chatrpc_server.core.observer import UpstreamObserver
from chatrpc_server.core.openai import error_responses, requests, responses
from chatrpc_server.core.upstream import ChatChunk, ChatRequest, ChatResponse
from chatrpc_server.settings import UpstreamSettings
from chatrpc_server.upstream.http import transport
from chatrpc_server.upstream.idle_timeout import IdleTimeout

log = logging.getLogger(__name__)

_ERROR_BODY_BYTES = 64 * 1024
_COMPRESSIONS = {"gzip", "x-gzip", "deflate", "br", "zstd", "compress"}
_DRAIN_SECONDS = 0.05
"""How long the end of a response may take after `[DONE]`; later than that its connection is not worth keeping."""
_LIMIT_HEADER = re.compile(r"x-ratelimit-[a-z0-9_.-]{1,50}(?<!-bin)")
"""gRPC refuses other metadata keys, and wants bytes for those that end in `-bin`."""
_SHOWN_HEADERS = 12
_SHOWN_CHARACTERS = 64
"""So much of the upstream's headers the caller may see."""


class OpenAIUpstream:
    """An upstream behind a transport of its own, which it closes. `watch` is told of each request.

    Raises OSError for a useless `ca_file`.
    """

    def __init__(self, settings: UpstreamSettings, watch: UpstreamObserver) -> None:
        self._settings = settings
        self._watch = watch
        url = httpx.URL(f"{settings.base_url.rstrip('/')}/chat/completions")
        self._transport = transport.transport(settings, url, _headers(settings))
        self._asks_usage = True

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._transport.aclose()

    def connections(self) -> tuple[int, int]:
        """How many there are: in use, and idle."""
        return self._transport.connections()

    async def complete(self, request: ChatRequest, call: Call) -> ChatResponse:
        """The whole answer. Only the call's deadline bounds how long it may take."""
        body = requests.body(request, stream=False, ask_usage=False)
        async with self._open(body, call) as answer:
            data = await _Body(answer, call).read(self._settings.max_response_bytes)
            streamed = _media_type(answer) == "text/event-stream"
            message = (
                responses.assembled(data, self._settings.max_event_bytes) if streamed else responses.response(data)
            )
        if message.HasField("usage"):
            call.usage = message.usage
        call.finish_reasons = {choice.index: choice.finish_reason for choice in message.choices}
        return message

    async def stream(self, request: ChatRequest, call: Call) -> AsyncGenerator[Sequence[ChatChunk], None]:
        """The answer as it comes. The first chunk and every gap between chunks have limits of their own."""
        settings = self._settings
        reader = responses.StreamReader(
            settings.max_event_bytes,
            drop_usage_chunk=requests.refuses_usage(request),
            coalesce=call.coalesce,
            reuse=True,
        )
        call.finish_reasons = reader.finish_reasons
        async with AsyncExitStack() as stack:
            patience = await stack.enter_async_context(IdleTimeout("the upstream sent no chunk for {:g} s"))
            patience.wait(settings.first_chunk_timeout_seconds)
            answer = await self._open_stream(request, call, stack)
            body = _Body(answer, call)
            note_gap, waited_seconds = stack.enter_context(self._watch.gaps(call)), 0.0
            try:
                if _media_type(answer) == "application/json":
                    # In one piece although a stream was asked for.
                    chunks = reader.whole(await body.read(settings.max_response_bytes))
                    call.chunks = reader.chunks
                    patience.rest()
                    if chunks:
                        yield chunks
                while not (reader.done or reader.error):
                    try:
                        data = await body.next()
                    except Truncated:
                        data = None  # if the completion has ended, its connection may break
                    chunks = reader.finish() if data is None else reader.feed(data)
                    if chunks:
                        if call.chunks:
                            note_gap(call.waiting_seconds - waited_seconds)
                        call.chunks = reader.chunks
                        waited_seconds = call.waiting_seconds
                        patience.rest()
                        yield chunks
                        patience.wait(settings.chunk_gap_timeout_seconds)
                    if data is None:
                        break
            finally:
                call.usage = reader.usage
            patience.rest()  # all is here: what is still waited for is the end of the response at most
            if reader.error:
                raise reader.error
            await body.drain()

    async def _open_stream(self, request: ChatRequest, call: Call, stack: AsyncExitStack) -> transport.Answer:
        """Begins a stream, asking for its usage unless this upstream has been found to reject that."""
        ask_usage = self._asks_usage
        body = requests.body(request, stream=True, ask_usage=ask_usage)
        try:
            return await stack.enter_async_context(self._open(body, call))
        except ErrorResponse as error:
            if not ask_usage or request.stream_options.include_usage or not error_responses.rejects_usage(error):
                raise
        body = requests.body(request, stream=True, ask_usage=False)
        answer = await stack.enter_async_context(self._open(body, call))
        # Only now is it known: a complaint that quotes the request names stream_options too.
        log.warning(
            "upstream rejects stream_options; no longer requesting usage of streams",
            extra={"event": "upstream_usage_unsupported"},
        )
        self._asks_usage = False
        return answer

    @asynccontextmanager
    async def _open(self, body: bytes, call: Call) -> AsyncIterator[transport.Answer]:
        """Sends one request; what it gives is a success, its body not yet read. Closes it, whatever happens."""
        call.attempts += 1
        call.upstream_status, call.upstream_request_id, call.response_metadata = None, "", ()
        with self._watch.request(call) as headers:
            answer = await self._send(body, headers, call)
            try:
                _note_headers(answer, call)
                await _check(answer, call)
                yield answer
            finally:
                await answer.aclose()

    async def _send(self, body: bytes, headers: Headers, call: Call) -> transport.Answer:
        started = time.monotonic()
        try:
            return await self._transport.post(body, headers)
        except httpx.ConnectTimeout:
            limit = self._settings.connect_timeout_seconds
            raise Unreachable(f"no connection to the upstream within {limit:g} s") from None
        except httpx.TimeoutException as error:
            raise TimedOut("the upstream did not answer in time") from error
        except httpx.ConnectError as error:
            log.warning(
                "cannot connect to the upstream", extra={"event": "upstream_connect_failed", "cause": str(error)}
            )
            raise Unreachable("cannot connect to the upstream") from error
        except httpx.TransportError as error:
            # Its text may quote what the upstream sent.
            cause = type(error).__name__
            log.warning(
                "upstream closed the connection before its response",
                extra={"event": "upstream_connection_lost", "cause": cause},
            )
            raise Unreachable("the connection to the upstream broke before it answered") from error
        finally:
            call.upstream_seconds = time.monotonic() - started
            call.waiting_seconds += call.upstream_seconds


def _headers(settings: UpstreamSettings) -> list[tuple[str, str]]:
    headers = [
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        # Compression would make a stream wait until there is enough to compress.
        ("accept-encoding", "identity"),
        ("user-agent", f"chatrpc-server/{__version__}"),
    ]
    if settings.api_key is not None:
        headers.append(("authorization", f"Bearer {settings.api_key.get_secret_value()}"))
    if settings.organization:
        headers.append(("openai-organization", settings.organization))
    if settings.project:
        headers.append(("openai-project", settings.project))
    return headers


def _note_headers(answer: transport.Answer, call: Call) -> None:
    """Keeps the status, and what the caller may see of the headers, as gRPC metadata."""
    headers, call.upstream_status = answer.headers, answer.status
    shown = [(name, value) for name, value in headers.items() if _LIMIT_HEADER.fullmatch(name) and _is_plain(value)]
    request_id = headers.get("x-request-id", "")
    call.upstream_request_id = request_id if _is_plain(request_id) else ""
    if call.upstream_request_id:
        shown.append(("x-upstream-request-id", call.upstream_request_id))
    call.response_metadata = shown[-_SHOWN_HEADERS:]


def _is_plain(value: str) -> bool:
    """Can it be gRPC metadata, and is it short enough to share the trailers with an error's details?"""
    return len(value) <= _SHOWN_CHARACTERS and value.isascii() and value.isprintable()


async def _check(answer: transport.Answer, call: Call) -> None:
    """Raises what a response that is no success amounts to."""
    if answer.status != 200:
        body = await _Body(answer, call).read(_ERROR_BODY_BYTES, keep_start=True)
        raise error_responses.refused(answer.status, answer.headers, body, time.time())
    encoding = answer.headers.get("content-encoding", "").lower()
    if encoding in _COMPRESSIONS:
        raise InvalidResponse(
            f"the upstream compressed its answer ({encoding}) although not asked to", "unexpected_content"
        )
    if _media_type(answer) == "text/html":
        raise InvalidResponse("the upstream answered with an HTML page", "unexpected_content")


def _media_type(answer: transport.Answer) -> str:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower()


class _Body:
    """The body of an answer. What it waits for it adds to the call's waiting time."""

    def __init__(self, answer: transport.Answer, call: Call) -> None:
        self._answer = answer
        self._call = call

    async def next(self) -> bytes | None:
        """What the next read brings, None at the end. Raises `TimedOut` or `Truncated`."""
        started = time.monotonic()
        try:
            return await self._answer.read() or None
        except httpx.TimeoutException as error:
            raise TimedOut("the upstream fell silent in the middle of its answer") from error
        except httpx.TransportError as error:
            raise Truncated("the connection to the upstream broke in the middle of its answer") from error
        finally:
            self._call.waiting_seconds += time.monotonic() - started

    async def read(self, limit_bytes: int, *, keep_start: bool = False) -> bytes:
        """All that is left. Too large or cut off: what came so far if `keep_start`, else an exception."""
        data = bytearray()
        try:
            while (piece := await self.next()) is not None:
                data += piece
                if len(data) > limit_bytes:
                    raise InvalidResponse(f"the upstream's answer is larger than {limit_bytes} bytes", "oversize")
        except (InvalidResponse, Truncated):
            if not keep_start:
                raise
        return bytes(data)

    async def drain(self) -> None:
        """Reads the end so that the connection can be used again."""
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while await self.next() is not None:
                    pass
        except (TimeoutError, TimedOut, Truncated):
            pass
