"""Runs large work of one call in a thread, so that the event loop serves other calls and health checks meanwhile."""

import asyncio
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

LARGE_BYTES = 32 * 1024
"""Bytes of input from which work is large. Hostile input of this size, such as tiny messages, takes 25 ms."""
_HUGE_BYTES = 1 << 20
"""Bytes of input from which only one call is processed at a time, because the work takes several times this memory."""

Result = TypeVar("Result")

# More threads would not be faster, because Python runs one at a time; and each would slow the event loop down.
_large = ThreadPoolExecutor(1, "large-work")
_huge = ThreadPoolExecutor(1, "huge-work")


async def run(size_bytes: int, function: Callable[..., Result], *arguments: object) -> Result:
    """Return the function's result. Input of `LARGE_BYTES` or more is processed in a thread.

    If the caller of this function is cancelled, the thread completes the work, and its result is dropped.
    """
    if size_bytes < LARGE_BYTES:
        return function(*arguments)
    executor = _large if size_bytes < _HUGE_BYTES else _huge
    return await asyncio.get_running_loop().run_in_executor(executor, _run, function, *arguments)


def _run(function: Callable[..., Result], *arguments: object) -> Result:
    try:
        return function(*arguments)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # else the loop frees the values of a large response
        raise
