"""The settings file, followed while the service runs. What may change without a restart is the level of the log.

Nothing else does: a half-changed service is worse than one that says that it wants a restart.
"""

import asyncio
import logging
import time
from typing import Any

from chatrpc_server import files, logs
from chatrpc_server.metrics.instruments import Metrics
from chatrpc_server.settings import Settings, SettingsError, SettingsFile

log = logging.getLogger("chatrpc.server")

LOOK_SECONDS = 5.0
_LEVEL = "log.level"


async def follow(file: SettingsFile, settings: Settings, metrics: Metrics) -> None:
    """Goes on until it is cancelled. `settings` are those in use."""
    metrics.config_reloaded.set(time.time())
    stamp = files.stamp(file.path)
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if (now := files.stamp(file.path)) == stamp:
            continue
        stamp = now
        try:
            changed = await asyncio.to_thread(file.load)
        except SettingsError as error:
            log.error("the settings file has changed and is of no use", extra={"mistakes": "; ".join(error.mistakes)})
            metrics.config_reloads.labels("failure").inc()
            continue
        others = sorted(_differing(settings.redacted(), changed.redacted()) - {_LEVEL})
        log.info("the settings file has changed", extra={_LEVEL: changed.log.level})
        if others:
            log.warning("these settings count after a restart", extra={"settings": ", ".join(others)})
        logs.set_level(changed.log.level)
        metrics.config_reloads.labels("success").inc()
        metrics.config_reloaded.set(time.time())


def _differing(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> set[str]:
    """The paths of what is not the same."""
    paths: set[str] = set()
    for name, value in one.items():
        if isinstance(value, dict):
            paths |= _differing(value, other[name], f"{prefix}{name}.")
        elif value != other[name]:
            paths.add(prefix + name)
    return paths
