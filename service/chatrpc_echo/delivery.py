"""When an answer's bytes go out, and how they break off: carries out a `Behaviour` on one connection.

Nothing here decides what is said. A caller that goes away cancels whatever waits here (see `server`).
"""

import asyncio
from typing import NoReturn

from aiohttp import web

from chatrpc_echo import errors, wire
from chatrpc_echo.answers import Answer
from chatrpc_echo.directives import Behaviour

# An unpaced stream would keep the loop to itself, and not notice that the caller left: it yields after so many chunks.
_CHUNKS_PER_TURN = 32
_GAP_AFTER = 2
_PAGE = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body><h1>It works!</h1></body></html>\n"


class AbortedError(Exception):
    """The connection was aborted on request; there is nobody left to answer."""


def page(headers: dict[str, str]) -> web.Response:
    """An HTML page with status 200, as captive portals and mistaken base URLs give."""
    return web.Response(body=_PAGE, content_type="text/html", headers=headers)


def as_json(body: bytes, headers: dict[str, str], status: int = 200) -> web.Response:
    """A complete JSON response."""
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


async def pause(seconds: float) -> None:
    """Waits, if there is anything to wait for."""
    if seconds:
        await asyncio.sleep(seconds)


async def unary(
    request: web.Request, answer: Answer, behaviour: Behaviour, headers: dict[str, str]
) -> web.StreamResponse:
    """Writes the answer as one JSON body, or breaks off on the way.

    Raises AbortedError, and ConnectionError if the caller is gone.
    """
    body = wire.unary(answer, with_usage=not behaviour.no_usage)
    kind, after = behaviour.ending or (None, 0)
    if kind == "reset" and after == 0:
        _abort(request)
    if kind == "truncate":
        body = body[: len(body) // 2]
    elif kind == "error":
        body = _error(answer, behaviour).body
    if kind != "reset" and not behaviour.first:
        return as_json(body, headers)
    response = web.StreamResponse(headers={**headers, "content-type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await pause(behaviour.first)
    if kind == "reset":
        await response.write(body[: len(body) // 2])
        _abort(request)
    await response.write(body)
    return response


async def stream(
    request: web.Request,
    answer: Answer,
    behaviour: Behaviour,
    headers: dict[str, str],
    *,
    asked_for_usage: bool,
    pace_seconds: float,
) -> web.StreamResponse:
    """Writes the answer as events, one write for each chunk, or breaks off on the way.

    Raises AbortedError, and ConnectionError if the caller is gone.
    """
    response = web.StreamResponse(headers={**headers, "content-type": "text/event-stream", "cache-control": "no-cache"})
    await response.prepare(request)
    await pause(behaviour.first)
    events = wire.Events(answer, with_usage=asked_for_usage and not behaviour.no_usage)
    kind, after = behaviour.ending or (None, None)
    if after != 0:
        await response.write(events.opening())
        await _write_deltas(response, events, behaviour, after, pace_seconds)
    if kind == "reset":
        _abort(request)
    if kind == "error":
        await response.write(wire.error_event(_error(answer, behaviour).body))
    elif kind is None:
        await response.write(events.closing() + (b"" if behaviour.no_done else wire.DONE))
    return response


async def _write_deltas(
    response: web.StreamResponse, events: wire.Events, behaviour: Behaviour, limit: int | None, pace_seconds: float
) -> None:
    """Writes the deltas, at most `limit`, with their pauses; in an answer too short for the gap it comes at the end."""
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


def _error(answer: Answer, behaviour: Behaviour) -> errors.ApiError:
    """The error object that comes with status 200; a code not among OpenAI's counts as a fault of the server."""
    return errors.usual(answer.model, status=500, code=behaviour.code or "server_error", message=behaviour.message)


def _abort(request: web.Request) -> NoReturn:
    if request.transport is not None:
        request.transport.abort()
    raise AbortedError


def headers_of(request: web.Request, identity: str) -> dict[str, str]:
    """The headers that every answer carries: the caller's request id, or one made of `identity`; and rate limits."""
    asked = request.headers.get("x-request-id", "")
    # Only what can go back into a header as it came.
    usable = asked.isascii() and asked.isprintable() and 0 < len(asked) <= 512
    return {
        "x-request-id": asked if usable else f"req_{identity}",
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-remaining-requests": "9999",
    }
