"""Every setting of the service: `model` declares them, `sources` finds them, `watcher` follows the file."""

from chatrpc_server.settings.address import Address
from chatrpc_server.settings.model import (
    DrainSettings,
    LimitsSettings,
    LogSettings,
    Settings,
    SettingsError,
    TlsSettings,
    TracingSettings,
    UpstreamSettings,
)
from chatrpc_server.settings.sources import SettingRow, SettingsFile, add_flags, describe, load, settings_file

__all__ = [
    "Address",
    "DrainSettings",
    "LimitsSettings",
    "LogSettings",
    "SettingRow",
    "Settings",
    "SettingsError",
    "SettingsFile",
    "TlsSettings",
    "TracingSettings",
    "UpstreamSettings",
    "add_flags",
    "describe",
    "load",
    "settings_file",
]
