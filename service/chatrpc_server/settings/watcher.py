"""Watches the settings file while the service runs, and passes changed settings to callbacks.

It polls, because Kubernetes swaps a symbolic link above a mounted file, and inotify does not report that for the file.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from chatrpc_server.settings.files import fingerprint
from chatrpc_server.settings.model import Settings, SettingsError
from chatrpc_server.settings.sources import SettingsFile

POLL_SECONDS = 5.0


async def watch(
    file: SettingsFile, on_change: Callable[[Settings], None], on_failure: Callable[[SettingsError], None]
) -> None:
    """Call `on_change` with complete, valid settings, or `on_failure`, once per change of the file; never return."""
    known = fingerprint(file.path)
    while True:
        await asyncio.sleep(POLL_SECONDS)
        if (now := fingerprint(file.path)) == known:
            continue
        known = now
        try:
            settings = await asyncio.to_thread(file.load)
        except SettingsError as error:
            on_failure(error)
        else:
            on_change(settings)


def differing(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted paths at which two redacted settings differ."""
    paths: set[str] = set()
    for name in one.keys() | other.keys():
        first, second, path = one.get(name), other.get(name), f"{prefix}{name}"
        if isinstance(first, dict) and isinstance(second, dict):
            paths |= differing(first, second, f"{path}.")
        elif first != second:
            paths.add(path)
    return paths
