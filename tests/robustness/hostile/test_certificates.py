"""Certificates that are replaced while many connections open."""

import os
import socket
import ssl
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from chatrpc_server.rpc import certificates
from chatrpc_server.rpc.certificates import Certificates
from chatrpc_server.settings.model import TlsSettings
from chatrpc_server.telemetry.metrics import Metrics
from support.process import ANY_PORTS, running

AUTHORITY = trustme.CA()
PAIRS = [
    (b"".join(pem.bytes() for pem in issued.cert_chain_pems), issued.private_key_pem.bytes())
    for issued in (AUTHORITY.issue_cert("localhost") for _ in range(4))
]
THREADS, CONNECTIONS = 16, 300
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The preface of HTTP/2 and an empty SETTINGS frame."""


class Files:
    """A certificate and its key in files."""

    def __init__(self, folder: Path) -> None:
        self.cert_file, self.key_file = folder / "cert.pem", folder / "key.pem"
        self.put(0)
        self.settings = TlsSettings(cert_file=self.cert_file, key_file=self.key_file)

    def put(self, number: int) -> None:
        """Replace the certificate, then the key; each in one step."""
        for file, content in zip((self.cert_file, self.key_file), PAIRS[number % len(PAIRS)], strict=True):
            new = file.with_suffix(".new")
            new.write_bytes(content)
            os.replace(new, file)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_no_certificate_with_the_key_of_another(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace both files between the reads of them; OpenSSL, which reads them again, then finds a pair."""
    reloaded = Certificates(files.settings, Metrics([], []))
    first = reloaded.current()
    files.put(1)
    read, reads, given = certificates._read_pem, 0, list[tuple[bytes, bytes]]()

    def read_slowly(setting: str, file: Path, marker: bytes) -> bytes:
        nonlocal reads
        content = read(setting, file, marker)
        reads += 1
        if reads == 1:
            files.put(2)
        return content

    def configuration(pairs: list[tuple[bytes, bytes]], _: object) -> object:
        given.extend(pairs)
        return object()

    monkeypatch.setattr(certificates, "_read_pem", read_slowly)
    monkeypatch.setattr(certificates.grpc, "ssl_server_certificate_configuration", configuration)
    assert reloaded.current() is first
    assert not given, "a mixed pair was used"
    assert reloaded.current() is not first, "the next handshake must find the new pair"
    assert given == [PAIRS[2][::-1]]


def test_certificates_in_use_are_not_freed(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """grpc frees the old certificates when it gets new ones, although a handshake has just begun to use them."""
    fetchers = []
    monkeypatch.setattr(
        certificates.grpc, "dynamic_ssl_server_credentials", lambda _, fetcher, __: fetchers.append(fetcher)
    )
    reloaded = Certificates(files.settings, Metrics([], []))
    reloaded.credentials()
    (fetch,) = fetchers
    begun = time.monotonic()
    assert fetch() is None
    files.put(1)
    assert fetch() is not None
    assert time.monotonic() - begun >= certificates._QUIET_SECONDS, "the first handshake needs its certificates"
    assert fetch() is None


def _connect(port: int, outcomes: "Counter[str]") -> None:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    for _ in range(CONNECTIONS):
        try:
            with (
                socket.create_connection(("localhost", port), timeout=60) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as wrapped,
            ):
                wrapped.sendall(HELLO)
                outcomes["settings" if wrapped.recv(9) else "closed"] += 1
        except OSError as error:
            outcomes[repr(error)] += 1


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_no_connection_fails_while_certificates_are_replaced(files: Files) -> None:
    stopping = threading.Event()
    outcomes: Counter[str] = Counter()

    def replace() -> None:
        number = 0
        while not stopping.wait(0.002):
            files.put(number := number + 1)

    tls = [f"--tls.cert-file={files.cert_file}", f"--tls.key-file={files.key_file}"]
    with running("serve", *ANY_PORTS, "--log.format=json", *tls, OPENAI_API_KEY="sk-none") as serve:
        port = int(serve.log("serving")["listen"].rpartition(":")[2])
        replacing = threading.Thread(target=replace)
        replacing.start()
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                for _ in range(THREADS):
                    pool.submit(_connect, port, outcomes)
        finally:
            stopping.set()
            replacing.join()
        assert serve.popen.poll() is None, "the process must survive"
        assert outcomes == {"settings": THREADS * CONNECTIONS}
