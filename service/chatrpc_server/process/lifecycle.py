"""Stop requests (SIGTERM, SIGINT) to a process of the service, and the error of a process that cannot start."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

StopRequests = Callable[[], Awaitable[None]]
"""Each call waits for the next request to stop this process. The first means drain, the second exit now."""


class StartError(Exception):
    """A failed start of the service. The message names the setting, the problem and the remedy."""


@contextmanager
def stop_signals() -> Iterator[StopRequests]:
    """Turn SIGTERM and SIGINT into stop requests inside the context; neither terminates the process."""
    received = asyncio.Semaphore(0)

    async def stop_requested() -> None:
        await received.acquire()

    with on_stop_signals(received.release):
        yield stop_requested


@contextmanager
def on_stop_signals(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` at each SIGTERM and SIGINT inside the context."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, callback)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
