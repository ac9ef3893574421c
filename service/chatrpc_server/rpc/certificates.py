"""TLS on the listener. The certificates are read again when their files change, so that rotating them needs no restart.

grpc asks at every handshake; connections that are open keep the certificate they began with, until their age ends them.
TLS is 1.2 or newer: that is what grpc's core speaks, and it has no setting for it.
"""

import errno
import logging
import ssl
from datetime import UTC, datetime
from pathlib import Path

import grpc

from chatrpc_server.settings.files import Fingerprint, fingerprint
from chatrpc_server.settings.model import TlsSettings
from chatrpc_server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}
"""What is wrong with this process or machine, and not with the files."""


class Certificates:
    """What the files of the settings hold; the metrics tell until when, and of each change."""

    def __init__(self, settings: TlsSettings, metrics: Metrics) -> None:
        """Raises OSError or ValueError if the files are of no use."""
        assert settings.cert_file
        assert settings.key_file
        self._cert_file, self._key_file, self._client_ca_file = (
            settings.cert_file,
            settings.key_file,
            settings.client_ca_file,
        )
        self._metrics = metrics
        self._known = self._fingerprints()
        self._first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`. Where there are authorities for callers, a caller without their word is refused."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._changed,  # type: ignore[arg-type]  # None is allowed
            self._client_ca_file is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked at every handshake, by a thread of grpc's: what is new, or None for no change."""
        try:
            now = self._fingerprints()
            if now == self._known:
                return None
            before, self._known = self._known, now  # files of no use are not read again until they change
            configuration = self._read()
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _PASSING:
                self._known = before
            # Such as a certificate that is new already beside a key that is still the old one.
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
        """Tells whether the files are still the same."""
        return [fingerprint(file) for file in (self._cert_file, self._key_file, self._client_ca_file) if file]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        chain = _pem("cert_file", self._cert_file, b"CERTIFICATE-----")
        key = _pem("key_file", self._key_file, b"PRIVATE KEY-----")
        authorities = (
            _pem("client_ca_file", self._client_ca_file, b"CERTIFICATE-----") if self._client_ca_file else None
        )
        # grpc takes whatever it is given, and then fails at each handshake without a word.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._cert_file, self._key_file, password="")
        except ssl.SSLError as error:
            raise ValueError(f"tls.key_file: {self._key_file}: no key for {self._cert_file}: {_why(error)}") from None
        try:
            if self._client_ca_file:
                context.load_verify_locations(self._client_ca_file)
        except ssl.SSLError as error:
            raise ValueError(f"tls.client_ca_file: {self._client_ca_file}: {_why(error)}") from None
        # A chain is as good as the first of its certificates to end, authorities as the last.
        ends = {"server": min(_ends("cert_file", self._cert_file, chain))}
        if self._client_ca_file and authorities:
            ends["client_ca"] = max(_ends("client_ca_file", self._client_ca_file, authorities))
        for role, end in ends.items():
            if end <= datetime.now(UTC):
                setting = "cert_file" if role == "server" else "client_ca_file"
                raise ValueError(f"tls.{setting}: expired on {end:%Y-%m-%d %H:%M:%S} UTC")
        for role, end in ends.items():
            self._metrics.certificate_end.labels(role).set(end.timestamp())
        return grpc.ssl_server_certificate_configuration([(key, chain)], authorities)


def _pem(setting: str, file: Path, marker: bytes) -> bytes:
    content = file.read_bytes()
    if marker not in content:
        raise ValueError(f"tls.{setting}: {file}: nothing in PEM form (-----BEGIN … {marker.decode()}) is in it")
    if b"ENCRYPTED" in content:
        raise ValueError(f"tls.{setting}: {file}: is encrypted, and nobody is there to ask for its password")
    return content


def _ends(setting: str, file: Path, content: bytes) -> list[datetime]:
    """When each of the certificates stops being valid."""
    # Imported where TLS is on: it takes 50 ms.
    from cryptography import x509

    try:
        return [certificate.not_valid_after_utc for certificate in x509.load_pem_x509_certificates(content)]
    except ValueError as error:
        raise ValueError(f"tls.{setting}: {file}: {error}") from None


def _why(error: ssl.SSLError) -> str:
    return (error.reason or "not readable").lower().replace("_", " ")
