"""Channel settings for chats, shared by the `grpc` and `grpc.aio` clients.

- **Round robin** over all addresses of the name. gRPC's default is the first address only; behind a Kubernetes Service
  with `clusterIP: None` each pod is an address, so calls spread over the pods. gRPC resolves the name again if a
  connection closes: the service closes each connection after ten minutes and lets its calls finish.
- **Health watch** of each address (gRFC A17), so that a stopping instance gets no more calls.
- **Retry of UNAVAILABLE and CANCELLED**, by gRPC and only before the first message: the service sends no headers
  earlier. A server reports CANCELLED for a call that it had not begun when it stopped (grpc/grpc#41785); gRPC never
  retries a call that the caller cancelled. The service itself has already retried every other error worth a retry.
- **Keepalive** while calls run, because a model may think for minutes and middleboxes forget silent connections.
- **20 MiB** per message, the service's own limit; gRPC's default of 4 MiB is too small for pictures.
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
"""The service accepts one ping per 10 s and closes the connection if pings come more often."""
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
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
}
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    # gRPC can retry only a buffered request, and its default of 256 KiB is too small for pictures.
    ("grpc.per_rpc_retry_buffer_size", _MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MILLISECONDS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MILLISECONDS),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
]


def choose_target(target: str | None) -> str:
    """Return `target`, else the variable CHATRPC_TARGET, else 127.0.0.1:50051. Raises ValueError for a URL."""
    chosen = target or os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET
    if "://" in chosen or not chosen.strip():
        scheme = chosen.partition("://")[0]
        if scheme in ("http", "https", "grpc", "grpcs", ""):
            raise ValueError(f"target: {chosen!r} is not an address; use host:port, such as {DEFAULT_TARGET}")
    return chosen


def make_credentials(
    tls: bool | str | os.PathLike[str] | grpc.ChannelCredentials,
    cert: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
) -> grpc.ChannelCredentials | None:
    """Return the credentials for `tls`: False for none, True for the system's authorities, a path for a CA file.

    `cert` has the paths of a client certificate and its key, and implies TLS. Raises OSError if a file cannot be read,
    ValueError for an empty path, a file of another kind, or for `cert` beside credentials.
    """
    if isinstance(tls, grpc.ChannelCredentials):
        if cert is not None:
            raise ValueError("cert: is given beside credentials; put the certificate into these")
        return tls
    if tls is False and cert is None:
        return None
    if tls == "":
        raise ValueError("tls: the path is empty; use True, or the path of a file with the authorities to trust")
    authorities = None if isinstance(tls, bool) else Path(tls).read_bytes()
    if cert is None:
        return grpc.ssl_channel_credentials(authorities)
    chain, key = (_read_pem(path, label) for path, label in zip(cert, ("CERTIFICATE", "PRIVATE KEY"), strict=True))
    return grpc.ssl_channel_credentials(authorities, key, chain)


def _read_pem(path: str | os.PathLike[str], label: str) -> bytes:
    """Read a file. gRPC's core aborts the process if it is empty, and reports neither its name nor other errors."""
    if path == "":
        raise ValueError("cert: a path is empty; use the paths of a certificate and its key")
    text = Path(path).read_bytes()
    begins = re.search(rf"^-----BEGIN ([A-Z0-9]+ )?{label}-----".encode(), text, re.MULTILINE)
    if not begins or re.search(rb"^(-----BEGIN |Proc-Type: 4,)ENCRYPTED", text, re.MULTILINE):
        raise ValueError(f"cert: {path} has no {label.lower()}; use a PEM file, unencrypted")
    return text


def make_authorization(api_key: str | None) -> list[tuple[str, str]]:
    """Return metadata with `api_key`, else with the variable CHATRPC_API_KEY, else none. Raises ValueError.

    gRPC rejects an invalid key too, but its error message contains the key.
    """
    key = api_key if api_key is not None else os.environ.get(KEY_VARIABLE, "")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(
            f"api_key or {KEY_VARIABLE}: the key has characters that metadata cannot carry; use printable ASCII only"
        )
    return [("authorization", f"Bearer {key}")] if key else []


def make_metadata(headers: Mapping[str, str] | None, authorization: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the metadata of a call; `authorization` in `headers` replaces the client's. Raises ValueError."""
    metadata = [(key.lower(), value) for key, value in (headers or {}).items()]
    for key, value in metadata:
        if not re.fullmatch("[a-z0-9_.-]+", key) or not (value.isascii() and value.isprintable()):
            raise ValueError(
                f"extra_headers: metadata cannot carry the header {key!r}; use a-z, 0-9, '_', '.' and '-' in its name,"
                " and printable ASCII in its value"
            )
    return metadata if "authorization" in dict(metadata) else [*authorization, *metadata]
