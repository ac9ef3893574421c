"""The settings of the service: `model` declares them, `sources` finds their values, `watcher` watches the file."""

from chatrpc_server.settings.address import Address
from chatrpc_server.settings.catalogue import SettingRow
from chatrpc_server.settings.model import (
    DrainSettings,
    LimitsSettings,
    LogSettings,
    ModelSettings,
    Settings,
    SettingsError,
    TlsSettings,
    TracingSettings,
    UpstreamSettings,
)
from chatrpc_server.settings.sources import SettingsFile, add_flags, describe, load, settings_file, upstream_variables

__all__ = [
    "Address",
    "DrainSettings",
    "LimitsSettings",
    "LogSettings",
    "ModelSettings",
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
    "upstream_variables",
]
