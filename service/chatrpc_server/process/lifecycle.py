"""How a process of ours is told to stop, and how it says that it cannot start."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

Stops = Callable[[], Awaitable[None]]
"""Each call waits for the next time that this process is told to stop: first to drain, then to end at once."""


class StartError(Exception):
    """The service cannot start; the message says what to change."""


@contextmanager
def stop_signals() -> Iterator[Stops]:
    """While it lasts SIGTERM and SIGINT do not end the process; each is one time to be told to stop."""
    received = asyncio.Semaphore(0)

    async def told() -> None:
        await received.acquire()

    with on_stop_signals(received.release):
        yield told


@contextmanager
def on_stop_signals(told: Callable[[], None]) -> Iterator[None]:
    """While it lasts SIGTERM and SIGINT call this."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, told)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
