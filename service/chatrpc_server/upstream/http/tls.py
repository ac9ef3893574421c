"""TLS towards the upstream: the authorities that the service trusts, and its own certificate if it has one."""

import os
import ssl
from pathlib import Path

import httpx

from chatrpc_server.settings import SettingsError, UpstreamSettings


def create_context(settings: UpstreamSettings) -> ssl.SSLContext | None:
    """Return the context for an https:// upstream, else None. Raises SettingsError with every invalid file.

    It trusts the authorities in `ca_file` alone, or else certifi's and the extra ones.
    """
    if not settings.base_url.lower().startswith("https:"):
        return None
    mistakes: list[str] = []
    if settings.ca_file:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _trust(context, "upstream.ca_file", settings.ca_file, mistakes)
    else:
        context = httpx.create_ssl_context(trust_env=False)
        if settings.extra_ca_file:
            _trust(context, "upstream.extra_ca_file (or SSL_CERT_FILE)", settings.extra_ca_file, mistakes)
        for folder in (settings.extra_ca_dir or "").split(os.pathsep):
            if folder:
                context.load_verify_locations(capath=folder)
    if settings.client_cert_file and settings.client_key_file:
        _identify(context, settings.client_cert_file, settings.client_key_file, mistakes)
    if mistakes:
        raise SettingsError(mistakes)
    return context


def _trust(context: ssl.SSLContext, setting: str, file: Path, mistakes: list[str]) -> None:
    """Add the authorities in a file."""
    try:
        context.load_verify_locations(cafile=file)
    except OSError as error:  # ssl.SSLError is one
        mistakes.append(
            f"{setting}: {file}: cannot load certificates: {_reason(error)}; use a PEM file of certificates"
        )


def _identify(context: ssl.SSLContext, cert_file: Path, key_file: Path, mistakes: list[str]) -> None:
    """Add the certificate of the service and its key."""
    known = len(mistakes)
    _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "upstream.client_cert_file", cert_file, mistakes)
    if len(mistakes) > known:
        return
    where = f"upstream.client_key_file: {key_file}"
    try:
        context.load_cert_chain(cert_file, key_file, password=_no_password)
    except _EncryptedError:
        mistakes.append(f"{where}: is encrypted; use an unencrypted private key")
    except OSError as error:
        problem = f"cannot be used with {cert_file}: {_reason(error)}"
        mistakes.append(f"{where}: {problem}; use a PEM file with the key of this certificate")


class _EncryptedError(Exception):
    """A private key that requires a password."""


def _no_password() -> str:
    raise _EncryptedError  # without this function OpenSSL would read the password from the terminal


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason.lower().replace("_", " ") if error.reason else "not PEM"
    return error.strerror or type(error).__name__
