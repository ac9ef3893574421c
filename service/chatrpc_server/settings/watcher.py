"""Watches the settings file while the service runs, and passes changed settings to callbacks.

It polls, because Kubernetes swaps a symbolic link above a mounted file, and inotify does not report that for the file.
Nothing ends the watch: each problem of the file is passed on as a `SettingsError`.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from chatrpc_server.settings.files import fingerprint
from chatrpc_server.settings.model import Settings, SettingsError
from chatrpc_server.settings.sources import SettingsFile

POLL_SECONDS = 5.0
_MAX_RETRY_POLLS = 60
"""Longest pause between two loads of an unchanged invalid file, in polls."""

_Result = TypeVar("_Result")


async def watch(
    file: SettingsFile, on_change: Callable[[Settings], None], on_failure: Callable[[SettingsError], None]
) -> None:
    """Call `on_change` with complete, valid settings, or `on_failure`, once per change of the file; never return.

    An invalid file is loaded again after growing pauses, because the cause can lie outside it, such as a missing file
    that it names. `on_failure` is called again only if the mistakes differ.
    """
    known, mistakes = file.known, tuple[str, ...]()
    polls = pause = 1
    while True:
        await asyncio.sleep(POLL_SECONDS)
        polls += 1
        try:
            now = await _in_thread(lambda: fingerprint(file.path))
            if now != known:
                known, mistakes, pause = now, (), 1
            elif not mistakes or polls < pause:
                continue
            polls, pause = 0, min(2 * pause, _MAX_RETRY_POLLS)
            on_change(await _in_thread(file.load))
            mistakes = ()
        except Exception as error:  # of any kind, because otherwise no later change would be noticed
            failure = error if isinstance(error, SettingsError) else _unexpected(file, error)
            if failure.mistakes != mistakes:
                on_failure(failure)
            mistakes = failure.mistakes


def _unexpected(file: SettingsFile, error: Exception) -> SettingsError:
    failure = SettingsError([f"{file.path}: unexpected {type(error).__name__}; report the exception"])
    failure.__cause__ = error
    return failure


async def _in_thread(work: Callable[[], _Result]) -> _Result:
    """Run `work` in a daemon thread, because asyncio's own threads are awaited at exit, however long they take."""
    loop, future = asyncio.get_running_loop(), asyncio.Future[_Result]()

    def run() -> None:
        result: concurrent.futures.Future[_Result] = concurrent.futures.Future()
        try:
            result.set_result(work())
        except Exception as error:
            result.set_exception(error)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(copy, result)

    def copy(result: concurrent.futures.Future[_Result]) -> None:
        if future.cancelled():
            return
        if error := result.exception():
            future.set_exception(error)
        else:
            future.set_result(result.result())

    threading.Thread(target=run, name="settings", daemon=True).start()
    return await future


def differing(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted paths at which two settings differ, and no value."""
    paths: set[str] = set()
    for name in one.keys() | other.keys():
        first, second, path = one.get(name), other.get(name), f"{prefix}{name}"
        if isinstance(first, dict) and isinstance(second, dict):
            paths |= differing(first, second, f"{path}.")
        elif first != second:
            paths.add(path)
    return paths
