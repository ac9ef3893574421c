"""How a process of ours is told to stop, and how it says that it cannot start."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager


class StartError(Exception):
    """The service cannot start; the message says what to change."""


@contextmanager
def stop_signals() -> Iterator[Callable[[], Coroutine[None, None, signal.Signals]]]:
    """While it lasts SIGTERM and SIGINT do not end the process; each call of what it gives awaits the next of them."""
    loop = asyncio.get_running_loop()
    received = asyncio.Queue[signal.Signals]()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, received.put_nowait, number)
    try:
        yield received.get
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
