"""Sends one response with the pauses and interruptions of its `Behaviour`.

This module never decides the content. If the caller disconnects, `server` cancels the functions here.
"""

import asyncio
from typing import NoReturn

from aiohttp import web

from chatrpc_echo import encoding, errors
from chatrpc_echo.completions import Completion
from chatrpc_echo.directives import Behaviour

_CHUNKS_PER_TURN = 32
"""An unpaced stream yields to the event loop after this number of chunks, so that it notices a disconnect."""
_GAP_AFTER = 2
_PAGE = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body><h1>It works!</h1></body></html>\n"


class AbortedError(Exception):
    """A connection that was aborted on request, so that no response can follow."""


def html_page(headers: dict[str, str]) -> web.Response:
    """Return an HTML page with status 200, as captive portals and wrong base URLs do."""
    return web.Response(body=_PAGE, content_type="text/html", headers=headers)


def json_response(body: bytes, headers: dict[str, str], status: int = 200) -> web.Response:
    """Return a complete JSON response."""
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


async def pause(seconds: float) -> None:
    """Sleep if `seconds` is not zero."""
    if seconds:
        await asyncio.sleep(seconds)


async def send_unary(
    request: web.Request, completion: Completion, behaviour: Behaviour, headers: dict[str, str]
) -> web.StreamResponse:
    """Send the completion as one JSON body, or interrupt it.

    Raises AbortedError, and ConnectionError if the caller has disconnected.
    """
    body = encoding.unary_body(completion, with_usage=not behaviour.no_usage)
    kind, after = behaviour.interruption or (None, 0)
    if kind == "reset" and after == 0:
        _abort(request)
    if kind == "truncate":
        body = body[: len(body) // 2]
    elif kind == "error":
        body = _error(completion, behaviour).body
    if kind != "reset" and not behaviour.first:
        return json_response(body, headers)
    response = web.StreamResponse(headers={**headers, "content-type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await pause(behaviour.first)
    if kind == "reset":
        await response.write(body[: len(body) // 2])
        _abort(request)
    await response.write(body)
    return response


async def send_stream(
    request: web.Request,
    completion: Completion,
    behaviour: Behaviour,
    headers: dict[str, str],
    *,
    include_usage: bool,
    pace_seconds: float,
) -> web.StreamResponse:
    """Send the completion as events, one write per chunk, or interrupt it.

    Raises AbortedError, and ConnectionError if the caller has disconnected.
    """
    response = web.StreamResponse(headers={**headers, "content-type": "text/event-stream", "cache-control": "no-cache"})
    await response.prepare(request)
    await pause(behaviour.first)
    events = encoding.StreamEvents(completion, with_usage=include_usage and not behaviour.no_usage)
    kind, after = behaviour.interruption or (None, None)
    if after != 0:
        await response.write(events.opening())
        await _write_deltas(response, events, behaviour, after, pace_seconds)
    if kind == "reset":
        _abort(request)
    if kind == "error":
        await response.write(encoding.error_event(_error(completion, behaviour).body))
    elif kind is None:
        await response.write(events.closing() + (b"" if behaviour.no_done else encoding.DONE))
    return response


async def _write_deltas(
    response: web.StreamResponse,
    events: encoding.StreamEvents,
    behaviour: Behaviour,
    limit: int | None,
    pace_seconds: float,
) -> None:
    """Write at most `limit` deltas with their pauses. If the stream is too short for the gap, pause at the end."""
    sent = 0
    for event in events.deltas():
        if sent == limit:
            break
        if sent == _GAP_AFTER:
            await pause(behaviour.gap)
        if pace_seconds:
            await asyncio.sleep(pace_seconds)
        elif sent % _CHUNKS_PER_TURN == _CHUNKS_PER_TURN - 1:
            await asyncio.sleep(0)
        await response.write(event)
        sent += 1
    if sent <= _GAP_AFTER:
        await pause(behaviour.gap)


def _error(completion: Completion, behaviour: Behaviour) -> errors.ApiError:
    """Return the error object sent with status 200. Codes that OpenAI does not use become server errors."""
    return errors.openai_error(
        completion.model, status=500, code=behaviour.code or "server_error", message=behaviour.message
    )


def _abort(request: web.Request) -> NoReturn:
    if request.transport is not None:
        request.transport.abort()
    raise AbortedError


def common_headers(request: web.Request, identity: str) -> dict[str, str]:
    """Return the headers of every response: rate limits, and the caller's request id or one made of `identity`."""
    requested = request.headers.get("x-request-id", "")
    # Return the id only if it is a valid header value.
    valid = requested.isascii() and requested.isprintable() and 0 < len(requested) <= 512
    return {
        "x-request-id": requested if valid else f"req_{identity}",
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-remaining-requests": "9999",
    }
