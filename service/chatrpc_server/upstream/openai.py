"""One attempt at an OpenAI-compatible `POST {base_url}/chat/completions`: implements `core.upstream.Upstream`.

Uses a transport without an HTTP client around it, because a client adds only redirects, cookies, authentication flows
and decompression, which must not happen here (figures in docs/performance.md).
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import httpx

from chatrpc_server.core.call import Attempt, Call, Headers, UpstreamIdentity
from chatrpc_server.core.errors import (
    ErrorResponse,
    Exhausted,
    InvalidResponse,
    TimedOut,
    Truncated,
    Unreachable,
    UpstreamFault,
)
from chatrpc_server.core.observer import UpstreamObserver
from chatrpc_server.core.openai import requests, response_headers, responses
from chatrpc_server.core.openai.choices import Choices
from chatrpc_server.core.openai.usage import StreamUsage, UsagePolicy
from chatrpc_server.core.text import Redactor
from chatrpc_server.core.upstream import ChatChunk, ChatRequest, ChatResponse, Usage
from chatrpc_server.process import large_work
from chatrpc_server.settings import UpstreamSettings
from chatrpc_server.upstream.body import Body, check, check_size
from chatrpc_server.upstream.headers import RequestHeaders
from chatrpc_server.upstream.http import failures, transport
from chatrpc_server.upstream.http.errors import InvalidHttp
from chatrpc_server.upstream.http.failures import ProxyRefused
from chatrpc_server.upstream.idle_timeout import IdleTimeout

log = logging.getLogger(__name__)

_INVALID_HTTP = "the upstream's response violates HTTP/1.1; check whether upstream.base_url is the address of an API"
_RETRY_AFTER_SECONDS = 1.0
"""Delay after which a caller can retry if this process has no descriptor left."""
_SHOWN_HEADERS = 12
_SHOWN_CHARACTERS = 64
"""Limits for the upstream's headers that a caller receives: their number, and the characters of each.

The second one also limits the name of a model in logs.
"""


class OpenAIUpstream:
    """One upstream with its own transport. `observer` sees each request."""

    def __init__(self, settings: UpstreamSettings, observer: UpstreamObserver) -> None:
        """Create it inside the running loop. Raises SettingsError if a file for TLS is invalid."""
        self.identity = identity_of(settings)
        self._settings = settings
        self._observer = observer
        self._headers = RequestHeaders(settings)
        url = httpx.URL(self.identity.url + (f"?{settings.query}" if settings.query else ""))
        self._transport = transport.create(settings, url, self._headers.fixed)
        self._usage = UsagePolicy()
        self._redact = Redactor([settings.api_key.get_secret_value()] if settings.api_key else [])

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    def connections(self) -> tuple[int, int]:
        """Return the numbers of connections in use and idle."""
        return self._transport.connections()

    async def complete(self, request: ChatRequest, call: Call) -> ChatResponse:
        """Return the complete response. Only the call's deadline limits its duration."""
        body = await large_work.run(call.request_bytes, requests.unary_body, request)
        async with self._open(body, call) as response:
            received, settings = Body(response, call), self._settings
            start = await received.read_start(settings.max_response_bytes)
            if responses.is_event_stream(start):
                message = await self._read_streamed(received, start, request.n)
            else:
                limits = settings.max_response_bytes, settings.finished_timeout_seconds
                data = await received.read_json(start, *limits)
                message = await large_work.run(len(data), responses.parse_response, data)
        if message.HasField("usage"):
            call.usage = Usage()
            call.usage.CopyFrom(message.usage)  # because a part of a message keeps the memory of the whole
        call.finish_reasons = {choice.index: choice.finish_reason for choice in message.choices}
        return message

    async def _read_streamed(self, body: Body, start: bytes, requested_choices: int) -> ChatResponse:
        """Read a response that is a stream although none was requested. Its chunks are not kept."""
        streamed = responses.StreamedResponse(self._settings.max_event_bytes, requested_choices)
        received, chunks, ends_at = 0, 0, None
        fault: UpstreamFault | None = None
        data: bytes | None = start
        while data is not None:
            received += len(data)
            if not streamed.choices.is_final:
                check_size(received, self._settings.max_response_bytes)
            await large_work.run(len(data) + streamed.pending_bytes, streamed.feed, data)
            if streamed.done:
                break
            if streamed.chunks > chunks:
                chunks, ends_at = streamed.chunks, self._ends_at(streamed.choices, ends_at)
            try:
                data = await (body.next() if ends_at is None else body.next_until(ends_at))
            except (Truncated, InvalidResponse) as error:
                data, fault = None, error  # no error yet: the completion can be complete, as `finish` checks
        message = await large_work.run(received, streamed.finish, fault)
        if streamed.done:
            await body.drain()
        return message

    def _ends_at(self, choices: Choices, earlier: float | None) -> float | None:
        """Return when a stream ends whose connection stays open, or None if not all choices have finished.

        `earlier`: the time before the latest chunks. They do not extend it, because some servers send heartbeats
        as chunks.
        """
        if not choices.is_whole:
            return None
        settings = self._settings
        wait = settings.finished_timeout_seconds if choices.is_final else settings.chunk_gap_timeout_seconds
        ends_at = asyncio.get_running_loop().time() + wait
        return ends_at if earlier is None else min(ends_at, earlier)

    async def stream(self, request: ChatRequest, call: Call) -> AsyncGenerator[Sequence[ChatChunk], None]:
        """Yield the response as it arrives. The first chunk and each gap between chunks have their own time limits."""
        settings, loop = self._settings, asyncio.get_running_loop()
        usage = self._usage.of_stream(request)
        reader = responses.StreamReader(
            settings.max_event_bytes,
            max_response_bytes=settings.max_response_bytes,
            requested_choices=request.n,
            usage=usage,
            coalesce=call.coalesce,
            reuse=True,
        )
        call.finish_reasons = reader.choices.finish_reasons
        async with AsyncExitStack() as stack:
            timeout = await stack.enter_async_context(IdleTimeout("the upstream sent no chunk for {:g} s"))
            timeout.arm(settings.first_chunk_timeout_seconds)
            response = await self._open_stream(request, usage, call, stack)
            body = Body(response, call)
            fault: UpstreamFault | None = None
            ends_at: float | None = None
            held_bytes = 0
            note_gap, waited_seconds = stack.enter_context(self._observer.gaps(call, call.attempts[-1])), 0.0
            try:
                while not (reader.done or reader.error):
                    try:
                        data = await (body.next() if ends_at is None else body.next_until(ends_at))
                    except (Truncated, InvalidResponse) as error:
                        data, fault = None, error  # no error yet: the completion can be complete, as `finish` checks
                    if data is None:
                        chunks = await large_work.run(reader.pending_bytes, reader.finish, fault)
                    elif len(data) + reader.pending_bytes < large_work.LARGE_BYTES:
                        chunks = reader.feed(data)
                    else:
                        chunks = await large_work.run(large_work.LARGE_BYTES, reader.feed, data)
                    if held_bytes or reader.pending_bytes >= large_work.LARGE_BYTES:
                        call.release(held_bytes)
                        held_bytes = reader.pending_bytes
                        call.hold(held_bytes)
                    if chunks:
                        if call.chunks:
                            note_gap(call.waiting_seconds - waited_seconds)
                        call.chunks = reader.chunks
                        waited_seconds = call.waiting_seconds
                        timeout.disarm()
                        if ends_at is None:
                            yield chunks
                        else:
                            yielded_at = loop.time()
                            yield chunks
                            ends_at += loop.time() - yielded_at  # because the caller can read slowly
                        if reader.choices.is_whole:
                            ends_at = self._ends_at(reader.choices, ends_at)
                        else:
                            ends_at = None
                            timeout.arm(settings.chunk_gap_timeout_seconds)
                    elif settings.comments_are_alive and ends_at is None:
                        timeout.rearm()
                    if data is None:
                        break
            finally:
                call.usage = reader.usage
            timeout.disarm()  # because the completion has arrived; only the end of the response can follow
            if reader.error:
                raise reader.error
            if reader.done:  # else the connection closes, because its response has not ended
                await body.drain()

    async def _open_stream(
        self, request: ChatRequest, usage: StreamUsage, call: Call, stack: AsyncExitStack
    ) -> transport.Response:
        """Open a stream. If the upstream rejects the request for usage, send a second request without it."""
        try:
            body = await large_work.run(call.request_bytes, requests.stream_body, request, usage)
            return await stack.enter_async_context(self._open(body, call))
        except ErrorResponse as error:
            fallback = usage.fallback(error)
            if fallback is None:
                raise
        body = await large_work.run(call.request_bytes, requests.stream_body, request, fallback)
        response = await stack.enter_async_context(self._open(body, call))
        # Only this success proves the cause, because every error that quotes the request contains stream_options.
        log.warning(
            "upstream rejects stream_options for this model; no longer requesting usage of its streams",
            extra={"event": "upstream_usage_unsupported", "model": call.model[:_SHOWN_CHARACTERS]},
        )
        self._usage.disable(request.model)
        return response

    @asynccontextmanager
    async def _open(self, body: bytes, call: Call) -> AsyncIterator[transport.Response]:
        """Send one request and yield its successful response, with the body unread; close it in any case."""
        own = self._headers.of(call)
        attempt = call.begin_attempt(self.identity, time.monotonic())
        with self._observer.request(call, attempt) as headers:
            response = await self._send(body, [*own, *headers], call, attempt)
            try:
                self._note_headers(response, call, attempt)
                if response.status == 407 and self._settings.proxy:  # for a request without a tunnel
                    raise self._refused_by_proxy(407, call, attempt)
                await check(response, call)
                yield response
            finally:
                await response.aclose()

    def _note_headers(self, response: transport.Response, call: Call, attempt: Attempt) -> None:
        """Keep the status, and the headers that the caller receives as gRPC metadata."""

        def is_shown(value: str) -> bool:
            return self._is_shown(value) and (not call.callers_key or call.callers_key not in value)

        attempt.status = response.status
        shown = list(response_headers.rate_limits(response.headers, is_shown))
        attempt.request_id = response_headers.request_id(response.headers, is_shown)
        if attempt.request_id:
            shown.append(("x-upstream-request-id", attempt.request_id))
        attempt.response_metadata = shown[-_SHOWN_HEADERS:]

    def _is_shown(self, value: str) -> bool:
        """Return whether a value is short and valid gRPC metadata, and repeats no key.

        It must be short, because it stands beside an error's details in the trailers.
        """
        is_plain = len(value) <= _SHOWN_CHARACTERS and value.isascii() and value.isprintable()
        return is_plain and self._redact(value) == value

    async def _send(self, body: bytes, headers: Headers, call: Call, attempt: Attempt) -> transport.Response:
        try:
            return await self._transport.post(body, headers)
        except httpx.ConnectTimeout as error:
            limit, via_proxy = self._settings.connect_timeout_seconds, self._settings.proxy is not None
            words = failures.connect_timeout(error, limit, via_proxy=via_proxy)
            self._log_connect_failure(words, call, attempt)
            raise Unreachable(words) from None
        except httpx.TimeoutException as error:
            raise TimedOut("the upstream did not respond in time") from error
        except ProxyRefused as error:
            raise self._refused_by_proxy(error.status, call, attempt) from error
        except httpx.ConnectError as error:
            if failures.is_exhaustion(error):
                problem = "this process has no file descriptor left for a connection to the upstream"
                remedy = "raise the limit of open files or lower limits.max_in_flight"
                raise Exhausted(f"{problem}; {remedy}", retry_after_seconds=_RETRY_AFTER_SECONDS) from error
            self._log_connect_failure(str(error), call, attempt)
            words = failures.connect_failure(error, via_proxy=self._settings.proxy is not None)
            raise Unreachable(words) from error
        except InvalidHttp as error:
            raise InvalidResponse(_INVALID_HTTP, "unexpected_content") from error
        except httpx.TransportError as error:
            # Log only the type, because the text can quote the upstream's bytes.
            if _is_first_unreachable(call, attempt):
                cause = type(error).__name__
                log.warning(
                    "upstream closed the connection before its response",
                    extra={"event": "upstream_connection_lost", **self._log_fields(call), "cause": cause},
                )
            broke = "the connection to the upstream broke before its response"
            raise Unreachable(failures.tls_alert(error) or broke) from error
        finally:
            attempt.headers_seconds = time.monotonic() - attempt.started
            call.waiting_seconds += attempt.headers_seconds

    def _refused_by_proxy(self, status: int, call: Call, attempt: Attempt) -> Unreachable:
        """Log the proxy's refusal, and return the error."""
        words, is_transient = failures.proxy_refusal(status)
        self._log_connect_failure(words, call, attempt)
        return Unreachable(words, is_transient=is_transient)

    def _log_connect_failure(self, cause: str, call: Call, attempt: Attempt) -> None:
        """Log one line for all attempts of the call."""
        if _is_first_unreachable(call, attempt):
            log.warning(
                "cannot connect to the upstream",
                extra={"event": "upstream_connect_failed", **self._log_fields(call), "cause": cause},
            )

    def _log_fields(self, call: Call) -> dict[str, str]:
        url = httpx.URL(self.identity.url)
        address = f"{url.scheme}://{url.netloc.decode('ascii')}"
        return {"request_id": call.id, "upstream": self.identity.name, "address": address}


def _is_first_unreachable(call: Call, attempt: Attempt) -> bool:
    """Mark the attempt as unreachable; return whether no earlier attempt of the call was."""
    attempt.unreachable = True
    return not any(earlier.unreachable for earlier in call.attempts if earlier is not attempt)


def identity_of(settings: UpstreamSettings) -> UpstreamIdentity:
    """Return the names of an upstream, for metrics, logs and traces."""
    return UpstreamIdentity(settings.name, settings.provider, f"{settings.base_url.rstrip('/')}/chat/completions")
