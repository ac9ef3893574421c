"""Awaits operations of grpc.aio so that a cancellation leaves no memory behind.

grpc.aio frees the buffers of an operation in the coroutine that awaits it. If that coroutine is cancelled, they are
never freed: a received message if it arrives later, or the metadata of a status.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from contextvars import Context
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class _Uncancelled:
    """What a task awaits in place of a future, so that a cancellation of the task does not reach the future.

    `asyncio.shield` does the same with a second future and one more turn of the loop.
    """

    __slots__ = ("_asyncio_future_blocking", "_future", "_wake")

    def __init__(self, future: "asyncio.Future[Any]") -> None:
        self._asyncio_future_blocking = True
        self._future = future

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, as a task requests it from a future."""
        return self._future.get_loop()

    def add_done_callback(self, wake: Callable[[object], None], *, context: Context | None = None) -> None:
        """Wake the task when the future is done."""
        self._wake = wake, context
        self._future.add_done_callback(wake, context=context)

    def cancel(self, msg: object = None) -> bool:
        """Wake the task with a cancellation, as it expects from a future."""
        wake, context = self._wake
        if not self._future.remove_done_callback(wake):
            return False
        self._future.get_loop().call_soon(wake, self, context=context)
        return True

    def result(self) -> None:
        """Raise the cancellation."""
        raise asyncio.CancelledError


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
                    yield _Uncancelled(future)
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
