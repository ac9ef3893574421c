"""The body of an upstream's response, and the check of its head."""

import asyncio
import logging
import time

import httpx

from chatrpc_server.core import decompression
from chatrpc_server.core.call import Call
from chatrpc_server.core.decompression import Decompressor, UnsupportedCompressionError
from chatrpc_server.core.errors import InvalidResponse, TimedOut, Truncated
from chatrpc_server.core.openai import error_responses, responses, unframed
from chatrpc_server.core.text import Redactor
from chatrpc_server.process import large_work
from chatrpc_server.upstream.http import transport
from chatrpc_server.upstream.http.errors import InvalidHttp

log = logging.getLogger(__name__)

_ERROR_BODY_BYTES = 64 * 1024
_BAD_COMPRESSION = "the compressed data of the upstream's response is invalid or cut off"
_STEP_BYTES = 64 * 1024
"""Bytes that are decompressed in one step."""
_TAIL_BYTES = 64
"""Bytes in which JSON ends, with blanks after it."""
_DRAIN_SECONDS = 0.05
"""Longest wait for the end of a response after `[DONE]`; after that, a new connection is cheaper."""


async def check(response: transport.Response, call: Call) -> None:
    """Raise the error of a response that is no success. Its content type does not matter."""
    if not 200 <= response.status < 300:
        if 300 <= response.status < 400:
            redact = Redactor([call.callers_key] if call.callers_key else [])
            location = redact(error_responses.redirect_target(response.headers)) or None
            log.warning(
                "upstream redirects to another address",
                extra={"event": "upstream_redirects", "request_id": call.id, "location": location},
            )
        body = await Body(response, call).read(_ERROR_BODY_BYTES, keep_start=True)
        raise await large_work.run(
            len(body), error_responses.parse, response.status, response.headers, body, time.time()
        )


def check_size(size_bytes: int, limit_bytes: int) -> None:
    """Raise an error that names the setting if the response exceeds the limit."""
    if size_bytes > limit_bytes:
        problem = f"the upstream's response is larger than {limit_bytes} bytes"
        raise InvalidResponse(f"{problem}; raise upstream.max_response_bytes", "oversize")


class Body:
    """The body of a response, decompressed. Its waits count as waiting time of the call."""

    def __init__(self, response: transport.Response, call: Call) -> None:
        self._response = response
        self._call = call
        self._is_at_start = True
        self._decompressor: Decompressor | None = None

    async def next(self) -> bytes | None:
        """Return the next bytes, or None at the end. Raises `TimedOut`, `Truncated` or `InvalidResponse`."""
        if self._decompressor is not None:
            return await self._next_decompressed(self._decompressor)
        data = await self._next_raw()
        if not self._is_at_start or data is None:
            return data
        self._is_at_start = False
        encoding = self._response.headers.get("content-encoding", "")
        try:
            self._decompressor = decompression.of_body(encoding, data)
        except UnsupportedCompressionError as error:
            problem = f"the upstream's response is compressed ({error}), which was not requested"
            raise InvalidResponse(problem, "unexpected_content") from None
        if self._decompressor is None:
            return data
        self._decompressor.feed(data)
        return await self._next_decompressed(self._decompressor)

    async def _next_decompressed(self, decompressor: Decompressor) -> bytes | None:
        await asyncio.sleep(0)  # because a small body can decompress to many steps without a read
        while True:
            try:
                data = decompressor.next(_STEP_BYTES)
            except ValueError as error:
                raise InvalidResponse(_BAD_COMPRESSION, "unexpected_content") from error
            if data:
                return data
            raw = await self._next_raw()
            if raw is None and not decompressor.is_whole:
                raise InvalidResponse(_BAD_COMPRESSION, "unexpected_content")
            if raw is None:
                return None
            decompressor.feed(raw)

    async def _next_raw(self) -> bytes | None:
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

    async def read_start(self, limit_bytes: int) -> bytes:
        """Return the first bytes that are not all blank, or nothing at the end."""
        received = 0
        while (piece := await self.next()) is not None:
            received += len(piece)
            check_size(received, limit_bytes)
            if piece.strip(unframed.BLANK):
                return piece
        return b""

    async def read_json(self, start: bytes, limit_bytes: int, silence_seconds: float) -> bytes:
        """Return `start` and all remaining bytes. Raise an error if they are too many or cut off.

        JSON that is whole also ends if nothing follows for this time, or if its framing is cut off.
        """
        data = bytearray(start)
        self._call.hold(len(data))
        while True:
            try:
                piece = await self._next_of_json(data, silence_seconds)
            except (InvalidResponse, Truncated):
                if not await self._is_whole(data):
                    raise
                piece = None
            if piece is None:
                return bytes(data)
            self._call.hold(len(piece))
            data += piece
            check_size(len(data), limit_bytes)

    async def _next_of_json(self, data: bytearray, silence_seconds: float) -> bytes | None:
        """Return the next bytes, or None at the end, or if nothing follows whole JSON for this time."""
        tail = data[-_TAIL_BYTES:].rstrip()
        has_length = self._response.headers.get("content-length") == str(len(data))
        if has_length or (tail and not tail.endswith((b"}", b"]"))):
            return await self.next()
        loop, checks = asyncio.get_running_loop(), list[asyncio.Task[None]]()
        try:
            async with asyncio.timeout(None) as limit:

                async def check() -> None:
                    if await self._is_whole(data):
                        limit.reschedule(loop.time())

                timer = loop.call_later(silence_seconds, lambda: checks.append(loop.create_task(check())))
                try:
                    return await self.next()
                finally:
                    timer.cancel()
                    for task in checks:
                        task.cancel()
        except TimeoutError:
            return None

    @staticmethod
    async def _is_whole(data: bytearray) -> bool:
        return await large_work.run(len(data), responses.is_whole, bytes(data))

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
