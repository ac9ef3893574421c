"""Loads settings as the command line does, and an example of each setting."""

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pydantic
import pytest

from chatrpc_server.settings import (
    Address,
    ModelSettings,
    Settings,
    SettingsError,
    add_flags,
    describe,
    load,
)

CANARY = "sk-canary-7f3a"
ROWS = describe()

BEYOND = (
    "is beyond loopback without TLS (tls.cert_file) and authentication of callers (tls.client_ca_file);"
    " add that, or set allow_insecure: true, CHATRPC_ALLOW_INSECURE=true or --allow-insecure"
)
HOST_PORT = "must be host:port, such as 127.0.0.1:50051 or [::1]:0 (no unix sockets)"
URL = "must be http:// or https://, a host and the path before /chat/completions"
COLLECTOR = "must be http:// or https://, a host and the path before /v1/traces"
URL_EXTRAS = "must not contain a user name, password, query (?…) or fragment (#…)"
URL_TOO_LONG = "must end before /chat/completions, which the service adds"
PROXY = "must be http://host:port or http://user:password@host:port"
HEADER = "must be visible ASCII characters, without spaces or line breaks"
NAME = "must be lower-case letters, digits, '_' and '-', such as eu-1"
NAMES = "must be names, or a mapping of names to settings, at most 50"
POSITIVE = "must be a number, more than 0"

# A value for each setting that is not its default: as text, and as loaded.
EXAMPLES: dict[str, tuple[str, Any]] = {
    "allow_insecure": ("true", True),
    "listen": ("[::1]:0", Address("::1", 0)),
    "health_listen": ("0.0.0.0:50052", Address("0.0.0.0", 50052)),
    "metrics_listen": ("0.0.0.0:9464", Address("0.0.0.0", 9464)),
    "workers": ("4", 4),
    "worker_heartbeat_timeout_seconds": ("5.5", 5.5),
    "reflection": ("true", True),
    "coalesce": ("false", False),
    "event_loop": ("asyncio", "asyncio"),
    "upstream.name": ("eu-1", "eu-1"),
    "upstream.provider": ("azure.ai.openai", "azure.ai.openai"),
    "upstream.base_url": ("http://[::1]:8000/api/v1/", "http://[::1]:8000/api/v1"),
    "upstream.api_key": (CANARY, CANARY),
    "upstream.auth_header": ("api-key", "api-key"),
    "upstream.auth_scheme": ("Token", "Token"),
    "upstream.headers": ("User-Agent:example/1.0", "User-Agent:example/1.0"),
    "upstream.query": ("api-version=2024-10-21", "api-version=2024-10-21"),
    "upstream.key_from_metadata": ("x-upstream-key", "x-upstream-key"),
    "upstream.forward_metadata": ("x-tenant, x-user", ("x-tenant", "x-user")),
    "upstream.organization": ("org-1", "org-1"),
    "upstream.project": ("007", "007"),
    "upstream.http_client": ("httpx", "httpx"),
    "upstream.connect_timeout_seconds": ("0.5", 0.5),
    "upstream.tcp_keepalive_seconds": ("60", 60),
    "upstream.first_chunk_timeout_seconds": ("1e3", 1000.0),
    "upstream.chunk_gap_timeout_seconds": ("7", 7.0),
    "upstream.finished_timeout_seconds": ("0.2", 0.2),
    "upstream.comments_are_alive": ("true", True),
    "upstream.max_retries": ("0", 0),
    "upstream.initial_backoff_seconds": ("8", 8.0),
    "upstream.max_backoff_seconds": ("0.5", 0.5),
    "upstream.max_retry_after_seconds": ("0", 0.0),
    "upstream.max_event_bytes": ("1024", 1024),
    "upstream.max_response_bytes": ("33554432", 33554432),
    "upstream.extra_ca_dir": ("/:/tmp", "/:/tmp"),
    "upstream.proxy": ("http://proxy.example.com:3128", "http://proxy.example.com:3128"),
    "upstream.proxy_from_env": ("true", True),
    "models": ("gpt-4o, yi-vision,", {"gpt-4o": ModelSettings(), "yi-vision": ModelSettings()}),
    "limits.max_message_bytes": ("4194304", 4194304),
    "limits.max_request_elements": ("1000", 1000),
    "limits.max_in_flight": ("1", 1),
    "limits.max_bytes_in_flight": ("268435456", 268435456),
    "limits.receive_timeout_seconds": ("10", 10.0),
    "limits.max_streams_per_connection": ("100", 100),
    "limits.max_connection_age_seconds": ("60", 60.0),
    "limits.min_deadline_seconds": ("0", 0.0),
    "limits.default_deadline_seconds": ("30", 30.0),
    "drain.delay_seconds": ("0", 0.0),
    "drain.grace_seconds": ("0", 0.0),
    "log.level": ("debug", "debug"),
    "log.format": ("json", "json"),
    "log.buffer_bytes": ("65536", 65536),
    "log.capture_stderr": ("false", False),
    "tracing.endpoint": ("https://[::1]:4318/otlp/", "https://[::1]:4318/otlp"),
    "tracing.sample_ratio": ("0.25", 0.25),
}
FILES = {
    "upstream.api_key_file",
    "upstream.headers_file",
    "upstream.ca_file",
    "upstream.extra_ca_file",
    "upstream.client_cert_file",
    "upstream.client_key_file",
    "upstream.proxy_file",
    "tls.cert_file",
    "tls.key_file",
    "tls.client_ca_file",
}


def parser() -> ArgumentParser:
    """As the CLI builds it: flags on a subcommand."""
    root = ArgumentParser(prog="chatrpc-server")
    commands = root.add_subparsers()
    for name in ("serve", "demo"):
        add_flags(commands.add_parser(name))
    return root


def load_from(
    flags: tuple[str, ...] = (),
    environ: dict[str, str] | None = None,
    file: Path | None = None,
    text: str | None = None,
) -> Settings:
    if file is not None and text is not None:
        file.write_text(text)
        flags = ("--config", str(file), *flags)
    args, unknown = parser().parse_known_args(["serve", *flags])
    return load(args, environ or {}, unknown)


def mistakes(**sources: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_from(**sources)
    assert str(caught.value).splitlines() == list(caught.value.mistakes)
    return list(caught.value.mistakes)


def at(settings: Settings, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value.get_secret_value() if isinstance(value, pydantic.SecretStr) else value


def as_yaml(path: str, value: str) -> str:
    group, _, name = path.rpartition(".")
    return f"{group}:\n  {name}: {value}\n" if group else f"{name}: {json.dumps(value) if '[' in value else value}\n"
