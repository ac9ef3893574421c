"""Awaits operations of grpc.aio so that a cancellation leaves no memory behind.

grpc.aio frees the buffers of an operation in the coroutine that awaits it. If that coroutine is cancelled, they are
never freed: a received message if it arrives later, or the metadata of a status.
"""

import asyncio
from collections.abc import Awaitable, Generator
from contextlib import suppress
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class Completed(Generic[_T]):
    """An awaitable around an operation. A cancellation is raised at once, but the operation continues to its end."""

    def __init__(self, operation: Awaitable[_T]) -> None:
        self._steps = operation.__await__()

    def __await__(self) -> Generator[Any, Any, _T]:
        try:
            while True:
                future = next(self._steps)
                future._asyncio_future_blocking = False  # as a task sets it when it waits for the future
                try:
                    yield from asyncio.shield(future)
                except asyncio.CancelledError:
                    future.add_done_callback(self._finish)
                    raise
                except Exception:  # noqa: S110  # the operation gets the error from the same future
                    pass
        except StopIteration as end:
            result: _T = end.value
            return result

    def _finish(self, _: object) -> None:
        # StopIteration at the end of the operation, or its error, because the call has ended.
        with suppress(Exception):
            next(self._steps)
