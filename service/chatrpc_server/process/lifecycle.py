"""Stop requests (SIGTERM, SIGINT) to a process of the service, and the error of a process that cannot start.

SIGHUP is no stop request: many programs reload their settings then, and its default action would end all calls.
"""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("chatrpc.server")

StopRequests = Callable[[], Awaitable[None]]
"""Each call waits for the next request to stop this process. The first means drain, the second exit now."""


class StartError(Exception):
    """A failed start of the service. The message names the setting, the problem and the remedy."""


@contextmanager
def stop_signals(*, with_hangup: bool = False) -> Iterator[StopRequests]:
    """Turn SIGTERM and SIGINT into stop requests inside the context; neither terminates the process.

    `with_hangup`: SIGHUP too, for a program that ends when its terminal closes.
    """
    received = asyncio.Semaphore(0)

    async def stop_requested() -> None:
        await received.acquire()

    with on_stop_signals(received.release, received.release if with_hangup else None):
        yield stop_requested


@contextmanager
def on_stop_signals(callback: Callable[[], None], on_hangup: Callable[[], None] | None = None) -> Iterator[None]:
    """Call `callback` at each SIGTERM and SIGINT inside the context, `on_hangup` at each SIGHUP; by default log it."""
    loop, at_hangup = asyncio.get_running_loop(), signal.getsignal(signal.SIGHUP)
    callbacks = {signal.SIGTERM: callback, signal.SIGINT: callback, signal.SIGHUP: on_hangup or _log_hangup}
    for number, each in callbacks.items():
        loop.add_signal_handler(number, each)
    try:
        yield
    finally:
        for number in callbacks:
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGHUP, at_hangup)


@contextmanager
def hangups_ignored() -> Iterator[None]:
    """Ignore SIGHUP inside the context. Processes that start inside it inherit this."""
    at_hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, at_hangup)
        signal.siginterrupt(signal.SIGHUP, False)  # as the event loop had set it


def _log_hangup() -> None:
    log.info(
        "SIGHUP ignored; changes of the settings file and of certificates apply without a signal",
        extra={"event": "hangup_ignored"},
    )
