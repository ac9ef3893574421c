"""TLS of the listener. Certificates are reloaded when their files change, so that rotation needs no restart.

grpc checks for new certificates at every handshake. Open connections keep their certificate until the maximum
connection age closes them. TLS is 1.2 or newer: grpc's core supports no older version and has no setting for it.
"""

import errno
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeAlias

import grpc

from chatrpc_server.settings.files import Fingerprint, fingerprint, read_for
from chatrpc_server.settings.model import TlsSettings
from chatrpc_server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_Configuration: TypeAlias = grpc.ServerCertificateConfiguration

_TRANSIENT_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}
"""Errors of this process or machine, not of the files."""
_QUIET_SECONDS = 0.2
"""Time after a handshake's call before grpc can free the certificates that it uses. That handshake needs 0.1 ms."""
_CHANGE_SECONDS = 2.0
"""Shortest time between two changes of certificates, because handshakes can wait for `_QUIET_SECONDS` at each."""


class Certificates:
    """The certificates and keys in the settings' files. The metrics report their expiry and each reload."""

    def __init__(self, settings: TlsSettings, metrics: Metrics) -> None:
        """Read the files. Raises OSError or ValueError if they are invalid."""
        assert settings.cert_file
        assert settings.key_file
        self._cert_file, self._key_file, self._client_ca_file = (
            settings.cert_file,
            settings.key_file,
            settings.client_ca_file,
        )
        self._metrics = metrics
        self._fingerprint = self._fingerprints()
        self._contents = self._read()
        self._configuration = self._check(self._contents)

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials for `add_secure_port`. If a client CA is set, callers require a certificate from it."""
        initial = self.current()
        return grpc.dynamic_ssl_server_credentials(
            initial,
            _Fetcher(self.current, initial),  # type: ignore[arg-type]  # None is allowed
            self._client_ca_file is not None,
        )

    def current(self) -> _Configuration:
        """Return the newest valid certificates. Log and count a reload, or a failure."""
        found = self._fingerprints()
        if found == self._fingerprint:
            return self._configuration
        try:
            contents = self._read()
            configuration = self._configuration if contents == self._contents else self._check(contents)
        except (OSError, ValueError) as error:
            if self._fingerprints() != found:
                return self._configuration  # because a file is being replaced: the next handshake reads it again
            if not (isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS):
                self._fingerprint = found  # so that invalid files are read only once
            # Normal during a rotation, if the certificate is replaced already and the key not yet.
            log.error(
                "TLS reload failed; keeping the current certificates",
                extra={"event": "tls_reload_failed", "cause": str(error)},
            )
            self._metrics.tls_reloads.labels("failure").inc()
            return self._configuration
        if self._fingerprints() != found:
            return self._configuration
        self._fingerprint, self._contents, self._configuration = found, contents, configuration
        log.info("TLS files reloaded; new connections use them", extra={"event": "tls_reloaded"})
        self._metrics.tls_reloads.labels("success").inc()
        return configuration

    def _fingerprints(self) -> list[Fingerprint]:
        """Return the fingerprints of all files."""
        return [fingerprint(file) for file in (self._cert_file, self._key_file, self._client_ca_file) if file]

    def _read(self) -> "_Contents":
        return _Contents(
            _read_pem("cert_file", self._cert_file, b"CERTIFICATE-----"),
            _read_pem("key_file", self._key_file, b"PRIVATE KEY-----"),
            _read_pem("client_ca_file", self._client_ca_file, b"CERTIFICATE-----") if self._client_ca_file else None,
        )

    def _check(self, contents: "_Contents") -> _Configuration:
        """Return the contents for grpc, and set the metrics of their expiry. Raises ValueError if they are invalid."""
        # grpc accepts invalid files and then fails at each handshake without an error message.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._cert_file, self._key_file, password="")
            # Compared too, because OpenSSL reads the files once more, and they can have changed in between.
            reason = "" if _is_pair(contents.chain, contents.key) else "key values mismatch"
        except ssl.SSLError as error:
            reason = _reason(error)
        if reason:
            problem = f"cannot be used with {self._cert_file}: {reason}; use the key of this certificate"
            raise ValueError(f"tls.key_file: {self._key_file}: {problem}")
        try:
            if self._client_ca_file:
                context.load_verify_locations(self._client_ca_file)
        except ssl.SSLError as error:
            problem = f"cannot be used: {_reason(error)}; use a PEM file of certificates"
            raise ValueError(f"tls.client_ca_file: {self._client_ca_file}: {problem}") from None
        # A chain expires with its first certificate, a set of authorities with its last.
        expiry = {"server": _expiry("cert_file", self._cert_file, contents.chain, min)}
        if self._client_ca_file and contents.authorities:
            expiry["client_ca"] = _expiry("client_ca_file", self._client_ca_file, contents.authorities, max)
        for role, expires in expiry.items():
            self._metrics.certificate_end.labels(role).set(expires.timestamp())
        return grpc.ssl_server_certificate_configuration([(contents.key, contents.chain)], contents.authorities)


class _Fetcher:
    """Hands the newest certificates to the port of one server. grpc calls it at every handshake.

    grpc (1.85.1) serialises these calls, and then uses its certificates without the lock. A handshake in another
    thread can still use those that a new value frees: the connection fails, or the process aborts. So a new value is
    returned only if the previous call is old enough. During the wait no further handshake can pass grpc's lock.
    """

    def __init__(self, current: Callable[[], _Configuration], initial: _Configuration) -> None:
        self._current, self._used = current, initial
        self._called = -_QUIET_SECONDS
        self._changed = -_CHANGE_SECONDS

    def __call__(self) -> _Configuration | None:
        """Return new certificates, or None if nothing changed."""
        try:
            if time.monotonic() < self._changed + _CHANGE_SECONDS:
                return None
            newest = self._current()
            if newest is self._used:
                return None
            time.sleep(max(0.0, self._called + _QUIET_SECONDS - time.monotonic()))
            self._used, self._changed = newest, time.monotonic()
            return newest
        finally:
            self._called = time.monotonic()


class _Contents(NamedTuple):
    """The contents of the files."""

    chain: bytes
    key: bytes
    authorities: bytes | None


def _read_pem(setting: str, file: Path, marker: bytes) -> bytes:
    content = read_for(f"tls.{setting}", file)
    if marker not in content:
        block = f"-----BEGIN … {marker.decode()}"
        raise ValueError(f"tls.{setting}: {file}: contains no PEM block ({block}); use a PEM file")
    if b"ENCRYPTED" in content:
        raise ValueError(f"tls.{setting}: {file}: is encrypted; use an unencrypted private key")
    return content


def _is_pair(chain: bytes, key: bytes) -> bool:
    """Return whether the key belongs to the first certificate of the chain; True if only OpenSSL can read them."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        public_key = load_pem_private_key(key, None).public_key()
        return x509.load_pem_x509_certificate(chain).public_key() == public_key
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return True


def _expiry(setting: str, file: Path, content: bytes, decisive: Callable[[Sequence[datetime]], datetime]) -> datetime:
    """Return the decisive expiry date of the certificates. Raises ValueError if it has passed."""
    # Imported only if TLS is on, because it takes 50 ms.
    from cryptography import x509

    try:
        certificates = x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise ValueError(f"tls.{setting}: {file}: {error}; use valid certificates") from None
    expires = decisive([certificate.not_valid_after_utc for certificate in certificates])
    if expires <= datetime.now(UTC):
        raise ValueError(f"tls.{setting}: {file}: expired on {expires:%Y-%m-%d %H:%M:%S} UTC; use a valid certificate")
    return expires


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "not readable").lower().replace("_", " ")
