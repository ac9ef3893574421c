"""TLS of the listener. Certificates are reloaded when their files change, so that rotation needs no restart.

grpc checks for new certificates at every handshake. Open connections keep their certificate until the maximum
connection age closes them. TLS is 1.2 or newer: grpc's core supports no older version and has no setting for it.
"""

import errno
import logging
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import grpc

from chatrpc_server.settings.files import Fingerprint, fingerprint
from chatrpc_server.settings.model import TlsSettings
from chatrpc_server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_TRANSIENT_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}
"""Errors of this process or machine, not of the files."""


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
        self._current = self._fingerprints()
        self._initial = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials for `add_secure_port`. If a client CA is set, callers require a certificate from it."""
        return grpc.dynamic_ssl_server_credentials(
            self._initial,
            self._reload,  # type: ignore[arg-type]  # None is allowed
            self._client_ca_file is not None,
        )

    def _reload(self) -> grpc.ServerCertificateConfiguration | None:
        """Return new certificates, or None if nothing changed. A grpc thread calls this at every handshake."""
        try:
            now = self._fingerprints()
            if now == self._current:
                return None
            previous, self._current = self._current, now  # so that invalid files are read only once
            configuration = self._read()
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
                self._current = previous
            # Normal during a rotation, if the certificate is replaced already and the key not yet.
            log.error(
                "TLS reload failed; keeping the current certificates",
                extra={"event": "tls_reload_failed", "cause": str(error)},
            )
            self._metrics.tls_reloads.labels("failure").inc()
            return None
        log.info("TLS files reloaded; new connections use them", extra={"event": "tls_reloaded"})
        self._metrics.tls_reloads.labels("success").inc()
        return configuration

    def _fingerprints(self) -> list[Fingerprint]:
        """Return the fingerprints of all files."""
        return [fingerprint(file) for file in (self._cert_file, self._key_file, self._client_ca_file) if file]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        chain = _read_pem("cert_file", self._cert_file, b"CERTIFICATE-----")
        key = _read_pem("key_file", self._key_file, b"PRIVATE KEY-----")
        authorities = (
            _read_pem("client_ca_file", self._client_ca_file, b"CERTIFICATE-----") if self._client_ca_file else None
        )
        # grpc accepts invalid files and then fails at each handshake without an error message.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._cert_file, self._key_file, password="")
        except ssl.SSLError as error:
            problem = f"cannot be used with {self._cert_file}: {_reason(error)}; use the key of this certificate"
            raise ValueError(f"tls.key_file: {self._key_file}: {problem}") from None
        try:
            if self._client_ca_file:
                context.load_verify_locations(self._client_ca_file)
        except ssl.SSLError as error:
            problem = f"cannot be used: {_reason(error)}; use a PEM file of certificates"
            raise ValueError(f"tls.client_ca_file: {self._client_ca_file}: {problem}") from None
        # A chain expires with its first certificate, a set of authorities with its last.
        expiry = {"server": _expiry("cert_file", self._cert_file, chain, min)}
        if self._client_ca_file and authorities:
            expiry["client_ca"] = _expiry("client_ca_file", self._client_ca_file, authorities, max)
        for role, expires in expiry.items():
            self._metrics.certificate_end.labels(role).set(expires.timestamp())
        return grpc.ssl_server_certificate_configuration([(key, chain)], authorities)


def _read_pem(setting: str, file: Path, marker: bytes) -> bytes:
    content = file.read_bytes()
    if marker not in content:
        block = f"-----BEGIN … {marker.decode()}"
        raise ValueError(f"tls.{setting}: {file}: contains no PEM block ({block}); use a PEM file")
    if b"ENCRYPTED" in content:
        raise ValueError(f"tls.{setting}: {file}: is encrypted; use an unencrypted private key")
    return content


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
