"""The body of an upstream's response, and the check of its head."""

import asyncio
import time

import httpx

from chatrpc_server.core.call import Call
from chatrpc_server.core.errors import InvalidResponse, TimedOut, Truncated
from chatrpc_server.core.openai import error_responses
from chatrpc_server.process import large_work
from chatrpc_server.upstream.http import transport
from chatrpc_server.upstream.http.errors import InvalidHttp

_ERROR_BODY_BYTES = 64 * 1024
_COMPRESSIONS = {"gzip", "x-gzip", "deflate", "br", "zstd", "compress"}
_DRAIN_SECONDS = 0.05
"""Longest wait for the end of a response after `[DONE]`; after that, a new connection is cheaper."""


async def check(response: transport.Response, call: Call) -> None:
    """Raise the error of a response that is no success, or no completion by its headers."""
    if response.status != 200:
        body = await Body(response, call).read(_ERROR_BODY_BYTES, keep_start=True)
        raise await large_work.run(
            len(body), error_responses.parse, response.status, response.headers, body, time.time()
        )
    encoding = response.headers.get("content-encoding", "").lower()
    if encoding in _COMPRESSIONS:
        raise InvalidResponse(
            f"the upstream's response is compressed ({encoding}), which was not requested", "unexpected_content"
        )
    if media_type(response) == "text/html":
        raise InvalidResponse("the upstream's response is an HTML page", "unexpected_content")


def check_size(size_bytes: int, limit_bytes: int) -> None:
    """Raise an error that names the setting if the response exceeds the limit."""
    if size_bytes > limit_bytes:
        problem = f"the upstream's response is larger than {limit_bytes} bytes"
        raise InvalidResponse(f"{problem}; raise upstream.max_response_bytes", "oversize")


def media_type(response: transport.Response) -> str:
    """Return the content type without parameters, in lower case."""
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


class Body:
    """The body of a response. Its waits count as waiting time of the call."""

    def __init__(self, response: transport.Response, call: Call) -> None:
        self._response = response
        self._call = call

    async def next(self) -> bytes | None:
        """Return the next bytes, or None at the end. Raises `TimedOut`, `Truncated` or `InvalidResponse`."""
        started = time.monotonic()
        try:
            return await self._response.read() or None
        except httpx.TimeoutException as error:
            raise TimedOut("the upstream fell silent in the middle of its response") from error
        except InvalidHttp as error:
            raise InvalidResponse(
                "the body of the upstream's response violates HTTP/1.1", "unexpected_content"
            ) from error
        except httpx.TransportError as error:
            raise Truncated("the connection to the upstream broke in the middle of its response") from error
        finally:
            self._call.waiting_seconds += time.monotonic() - started

    async def next_until(self, when: float) -> bytes | None:
        """Return the next bytes, or None if none arrive before this time of the loop's clock. Raises like `next`."""
        try:
            async with asyncio.timeout_at(when):
                return await self.next()
        except TimeoutError:
            return None

    async def read(self, limit_bytes: int, *, keep_start: bool = False) -> bytes:
        """Return all remaining bytes. If they are too many or cut off, raise, or return the start if `keep_start`."""
        data = bytearray()
        try:
            while (piece := await self.next()) is not None:
                self._call.hold(len(piece))
                data += piece
                check_size(len(data), limit_bytes)
        except (InvalidResponse, Truncated):
            if not keep_start:
                raise
        return bytes(data)

    async def drain(self) -> None:
        """Read the end, so that the connection can be reused."""
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while await self.next() is not None:
                    pass
        except (TimeoutError, TimedOut, Truncated, InvalidResponse):
            pass
