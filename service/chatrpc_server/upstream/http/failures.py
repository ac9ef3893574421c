"""Failures to connect: their causes in words, which never contain a key, a user name or bytes of a peer."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from chatrpc_server.process.descriptors import reserve

_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}
_WRONG_HOST = {62, 64}
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH, whose texts contain the host."""


class ProxyRefused(httpx.ProxyError):
    """A proxy that responded to CONNECT with an error status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the proxy refused the tunnel with HTTP {status}")
        self.status = status


def proxy_refusal(status: int) -> tuple[str, bool]:
    """Return the words for a proxy's error status, and whether a retry can succeed."""
    remedy = "; check user name and password in upstream.proxy" if status == 407 else ""
    words = f"cannot connect to the upstream: the proxy refused with HTTP {status}{remedy}"
    return words, status in (408, 429) or status >= 500


@contextmanager
def step(words: str) -> Iterator[None]:
    """Context manager for one step of connecting; the words name it if the limit of time expires inside."""
    try:
        yield
    except asyncio.CancelledError as error:  # the cause of asyncio's TimeoutError
        error.add_note(words)
        raise


LOOK_UP = "its host name was not resolved"
TUNNEL = "the proxy did not respond"
HANDSHAKE = "the TLS handshake was not completed"


def connect_timeout(error: BaseException, limit_seconds: float, *, via_proxy: bool) -> str:
    """Return the words for a connection that was not ready in time."""
    way = " through the proxy" if via_proxy else ""
    notes = [note for cause in _causes(error) for note in getattr(cause, "__notes__", ())]
    where = f": {notes[0]}" if notes else ""
    return f"no connection to the upstream{way} within {limit_seconds:g} s{where}; see upstream.connect_timeout_seconds"


def is_exhaustion(error: BaseException) -> bool:
    """Return whether an error while connecting is this process's own: it has no descriptor left."""
    return reserve.is_exhausted([cause.errno for cause in _causes(error) if isinstance(cause, OSError)])


def connect_failure(error: BaseException, *, via_proxy: bool) -> str:
    """Return the words for an error while connecting. A proxy resolves and connects in place of the service."""
    peer, setting = ("the proxy", "upstream.proxy") if via_proxy else ("the upstream", "upstream.base_url")
    for cause in _causes(error):
        match cause:
            case socket.gaierror():
                return f"cannot connect to {peer}: its host name cannot be resolved; check {setting}"
            case ssl.SSLError():
                return f"cannot connect to the upstream: {_tls_failure(cause)}"
            case ConnectionRefusedError():
                return f"cannot connect to {peer}: it refused the connection; check {setting}"
            case OSError(errno=number) if number in _NO_ROUTE:
                return f"cannot connect to {peer}: no route to its address; check {setting}"
    return "cannot connect to the upstream: the connection closed before it was ready"


def tls_alert(error: BaseException) -> str:
    """Return the words for a TLS alert after the handshake, such as a rejected certificate; else an empty text."""
    found = (cause for cause in _causes(error) if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""))
    return next((f"cannot connect to the upstream: {_tls_failure(cause)}" for cause in found), "")


def _tls_failure(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _WRONG_HOST:
            return "its certificate is for another host; check upstream.base_url"
        return f"its certificate is not trusted: {error.verify_message}; check upstream.ca_file"
    reason = (error.reason or "the connection closed").lower().replace("_", " ")
    if "alert" in reason:
        return f"it rejected the TLS handshake: {reason}; check upstream.client_cert_file"
    if reason in ("wrong version number", "record layer failure"):
        return f"TLS failed: {reason}; check whether upstream.base_url is an http:// address"
    return f"TLS failed: {reason}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes, because each HTTP client wraps them in its own way."""
    known: set[int] = set()
    while error is not None and id(error) not in known:
        known.add(id(error))
        yield error
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from _causes(each)
        error = error.__cause__ or error.__context__
