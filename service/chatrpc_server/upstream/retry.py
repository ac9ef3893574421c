"""Retries until the first chunk: an `Upstream` around another.

core/backoff.py decides whether and when a retry follows an error. After the first chunk a stream is never retried,
because the caller already has a part of it.
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
    """An upstream with retries. `on_retry` receives the call and the error that each retry follows."""

    def __init__(self, upstream: Upstream, backoff: Backoff, on_retry: Callable[[Call, ChatError], None]) -> None:
        self._upstream = upstream
        self._backoff = backoff
        self._on_retry = on_retry

    async def complete(self, request: ChatRequest, call: Call) -> ChatResponse:
        """Return the complete response of the first attempt that succeeds."""
        attempts = _Attempts(self._backoff, call, self._on_retry)
        while True:
            with attempts:
                return await self._upstream.complete(request, call)
            await attempts.pause()

    async def stream(self, request: ChatRequest, call: Call) -> AsyncGenerator[Sequence[ChatChunk], None]:
        """Yield the stream of the first attempt that has a chunk."""
        attempts = _Attempts(self._backoff, call, self._on_retry)
        while True:
            with attempts:
                async with aclosing(self._upstream.stream(request, call)) as batches:
                    async for batch in batches:
                        attempts.committed = True
                        yield batch
                return
            await attempts.pause()


class _Attempts:
    """Context manager around each attempt of a call; suppresses the error if a retry follows."""

    def __init__(self, backoff: Backoff, call: Call, on_retry: Callable[[Call, ChatError], None]) -> None:
        self.committed = False
        """Whether the caller has received a part of the response (gRFC A6). If so, no retry follows."""
        self._backoff = backoff
        self._call = call
        self._on_retry = on_retry
        self._retries = 0
        self._delay_seconds = 0.0

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self.committed or not isinstance(error, ChatError):
            return False
        chance = random.random()  # noqa: S311  # jitter needs no cryptography
        delay = self._backoff.delay_seconds(error, self._retries, chance)
        if delay is None or asyncio.get_running_loop().time() + delay >= self._call.deadline:
            return False
        self._retries += 1
        self._delay_seconds = delay
        self._on_retry(self._call, error)
        return True

    async def pause(self) -> None:
        """Wait for the delay before the next attempt."""
        started = time.monotonic()
        try:
            await asyncio.sleep(self._delay_seconds)
        finally:
            self._call.waiting_seconds += time.monotonic() - started
