"""Tries again, until the first chunk: an `Upstream` around another.

What may be tried again, and when, is decided in core/backoff.py. After the first chunk a stream is never replayed,
since the caller has part of it already.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from types import TracebackType

from chatrpc_server.core.backoff import Backoff
from chatrpc_server.core.call import Call
from chatrpc_server.core.errors import ChatError
from chatrpc_server.core.upstream import ChatChunk, ChatRequest, ChatResponse, Upstream


class Retrying:
    """`retried` is told the error that each retry follows."""

    def __init__(self, upstream: Upstream, backoff: Backoff, retried: Callable[[ChatError], None]) -> None:
        self._upstream = upstream
        self._backoff = backoff
        self._retried = retried

    async def complete(self, request: ChatRequest, call: Call) -> ChatResponse:
        """The whole answer of the first attempt that succeeds."""
        attempts = _Attempts(self._backoff, call, self._retried)
        while True:
            with attempts:
                return await self._upstream.complete(request, call)
            await attempts.pause()

    async def stream(self, request: ChatRequest, call: Call) -> AsyncGenerator[Sequence[ChatChunk], None]:
        """The stream of the first attempt that brings a chunk."""
        attempts = _Attempts(self._backoff, call, self._retried)
        while True:
            with attempts:
                async with aclosing(self._upstream.stream(request, call)) as batches:
                    async for batch in batches:
                        attempts.over = True
                        yield batch
                return
            await attempts.pause()


class _Attempts:
    """The attempts of one call. As a context around each, it swallows the error that another attempt is to follow."""

    def __init__(self, backoff: Backoff, call: Call, retried: Callable[[ChatError], None]) -> None:
        self.over = False
        """Whatever happens now, there is no further attempt."""
        self._backoff = backoff
        self._call = call
        self._retried = retried
        self._retries = 0
        self._delay_seconds = 0.0

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self.over or not isinstance(error, ChatError):
            return False
        chance = random.random()  # noqa: S311  # jitter needs no cryptography
        delay = self._backoff.delay_seconds(error, self._retries, chance)
        if delay is None or asyncio.get_running_loop().time() + delay >= self._call.deadline:
            return False
        self._retries += 1
        self._delay_seconds = delay
        self._retried(error)
        return True

    async def pause(self) -> None:
        """Waits as long as the last error asks for."""
        started = time.monotonic()
        try:
            await asyncio.sleep(self._delay_seconds)
        finally:
            self._call.waiting_seconds += time.monotonic() - started
