"""How a channel is to be set up for chats: what holds for either of grpc's two stacks, in one place.

- **Round robin** over all addresses of the name. gRPC's default stays with the first; behind a Kubernetes Service with
  `clusterIP: None` each pod is an address, and calls spread. Names are resolved anew when a connection ends: the
  service ends each after ten minutes, and lets the calls on it finish.
- **Health** of each address is watched, so that one that is about to stop gets no more calls (gRFC A17).
- **Retry of UNAVAILABLE only**, and by gRPC only until the first message: the service sends no headers before. All else
  the service has tried again already, where that was any use.
- **Keepalive** while calls run: a model may think for minutes, and middleboxes forget what is silent.
- **20 MiB** a message, as the service takes; gRPC's own 4 MiB are too few for pictures.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

TARGET_VARIABLE = "CHATRPC_TARGET"
KEY_VARIABLE = "CHATRPC_API_KEY"
DEFAULT_TARGET = "127.0.0.1:50051"

_MAX_MESSAGE_BYTES = 20 * 1024 * 1024
_KEEPALIVE_MILLISECONDS = 30_000
"""The service takes a ping each 10 s; more often it ends the connection."""
_KEEPALIVE_TIMEOUT_MILLISECONDS = 10_000
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": "readiness"},
    "methodConfig": [
        {
            "name": [{"service": "chatrpc.v1.ChatCompletionService"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    # Only what is kept can be tried again; gRPC's own 256 KiB are too little for pictures.
    ("grpc.per_rpc_retry_buffer_size", _MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MILLISECONDS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MILLISECONDS),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
]


def choose_target(target: str | None) -> str:
    """The address: what was given, else the variable CHATRPC_TARGET, else 127.0.0.1:50051. Raises ValueError."""
    chosen = target or os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET
    if "://" in chosen or not chosen.strip():
        scheme = chosen.partition("://")[0]
        if scheme in ("http", "https", "grpc", "grpcs", ""):
            raise ValueError(f"the target is host:port, such as {DEFAULT_TARGET}, and no URL: {chosen!r}")
    return chosen


def make_credentials(tls: bool | str | os.PathLike[str] | grpc.ChannelCredentials) -> grpc.ChannelCredentials | None:
    """Credentials for `tls`: False none, True the system's authorities, a path the file with the authorities to trust.

    Raises OSError for a file that cannot be read.
    """
    if isinstance(tls, grpc.ChannelCredentials):
        return tls
    if tls is False:
        return None
    if tls == "":
        raise ValueError("tls is an empty path: it is to be True, or a file with the authorities to trust")
    return grpc.ssl_channel_credentials(None if tls is True else Path(tls).read_bytes())


def make_authorization(api_key: str | None) -> list[tuple[str, str]]:
    """Metadata with the key: what was given, else the variable CHATRPC_API_KEY, else none. Raises ValueError.

    gRPC refuses a key that cannot be sent, too, but with the key in its message.
    """
    key = api_key if api_key is not None else os.environ.get(KEY_VARIABLE, "")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(
            f"the API key (api_key or {KEY_VARIABLE}) has characters that cannot be sent, such as a line end"
        )
    return [("authorization", f"Bearer {key}")] if key else []


def make_metadata(headers: Mapping[str, str] | None, authorization: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The metadata of a call; `authorization` among the headers takes the place of the client's. Raises ValueError."""
    metadata = [(key.lower(), value) for key, value in (headers or {}).items()]
    for key, value in metadata:
        if not re.fullmatch("[a-z0-9_.-]+", key) or not (value.isascii() and value.isprintable()):
            raise ValueError(f"the header {key!r} has characters that cannot be sent")
    return metadata if "authorization" in dict(metadata) else [*authorization, *metadata]
