"""TLS of the listener: accepted callers and versions, and certificates that change while it serves."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from chatrpc_server.process.lifecycle import StartError
from chatrpc_server.server import Server
from support import ANY_PORT, Service, outcome, request, service, settings

Code = grpc.StatusCode


class Files:
    """The files of the settings, and the authorities that issue new ones."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.callers = trustme.CA(), trustme.CA()
        self.cert_file, self.key_file, self.client_ca_file = (folder / name for name in ("cert", "key", "callers"))
        self.replace(self.authority)
        self.callers.cert_pem.write_to_path(str(self.client_ca_file))

    def replace(self, authority: trustme.CA, not_after: datetime | None = None) -> None:
        """Write a new certificate of this authority."""
        issued = authority.issue_cert("localhost", not_before=datetime(2019, 1, 1), not_after=not_after)
        self.cert_file.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        self.key_file.write_bytes(issued.private_key_pem.bytes())

    @property
    def tls(self) -> dict[str, Path]:
        return {"cert_file": self.cert_file, "key_file": self.key_file}

    @property
    def mutual(self) -> dict[str, Path]:
        return self.tls | {"client_ca_file": self.client_ca_file}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
async def secure(files: Files, echo: Echo) -> AsyncIterator[Service]:
    async with service(echo.base_url, tls=files.tls) as running:
        yield running


@pytest.fixture
async def mutual(files: Files, echo: Echo) -> AsyncIterator[Service]:
    async with service(echo.base_url, tls=files.mutual) as running:
        yield running


async def _call(chat: Service, trusted: trustme.CA, caller: trustme.LeafCert | None = None) -> Any:
    """Return the outcome of a call over a new connection."""
    key, chain = None, None
    if caller:
        key, chain = caller.private_key_pem.bytes(), caller.cert_chain_pems[0].bytes()
    credentials = grpc.ssl_channel_credentials(trusted.cert_pem.bytes(), key, chain)
    # Channels to one address share their connection by default.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    target = f"localhost:{chat.server.address.port}"
    async with grpc.aio.secure_channel(target, credentials, options) as channel:
        return await outcome(ChatCompletionServiceStub(channel).CreateChatCompletion(request(), timeout=5))


async def test_a_caller_that_trusts_the_certificate_is_accepted(secure: Service, files: Files) -> None:
    assert (await _call(secure, files.authority)).code is Code.OK
    assert (await _call(secure, trustme.CA())).code is Code.UNAVAILABLE


async def test_no_call_without_tls(secure: Service) -> None:
    ended = await outcome(secure.stub.CreateChatCompletion(request(), timeout=5))
    assert ended.code is Code.UNAVAILABLE
    assert not secure.value("grpc_server_started_total")


@pytest.mark.parametrize(
    ("caller", "code"),
    [
        (lambda files: files.callers.issue_cert("team-a"), Code.OK),
        (lambda files: None, Code.UNAVAILABLE),
        (lambda files: trustme.CA().issue_cert("team-a"), Code.UNAVAILABLE),
        (lambda files: files.authority.issue_cert("team-a"), Code.UNAVAILABLE),
    ],
    ids=["known", "none", "of-another-authority", "of-the-servers-authority"],
)
async def test_only_known_callers(mutual: Service, files: Files, caller: Callable[[Files], Any], code: Code) -> None:
    assert (await _call(mutual, files.authority, caller(files))).code is code
    assert mutual.value("grpc_server_started_total") == (code is Code.OK)


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_versions(secure: Service, version: ssl.TLSVersion, accepted: bool) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # otherwise OpenSSL itself rejects the old versions
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version

    def negotiated() -> str | None:
        with socket.create_connection(("localhost", secure.server.address.port), timeout=5) as plain:
            try:
                with context.wrap_socket(plain, server_hostname="localhost") as wrapped:
                    return wrapped.version()
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):  # any other error would come from this client
                return None

    assert (await asyncio.to_thread(negotiated) is not None) == accepted


async def test_a_new_certificate_without_a_restart(secure: Service, files: Files) -> None:
    """Open calls continue; new connections get the new certificate."""
    old, new = files.authority, trustme.CA()
    credentials = grpc.ssl_channel_credentials(old.cert_pem.bytes())
    async with grpc.aio.secure_channel(f"localhost:{secure.server.address.port}", credentials) as channel:
        stream = ChatCompletionServiceStub(channel).CreateChatCompletionStream(request(model="echo:pieces=20,pace=0.1"))
        chunks = aiter(stream)
        await anext(chunks)
        files.replace(new)
        assert (await _call(secure, new)).code is Code.OK
        assert (await _call(secure, old)).code is Code.UNAVAILABLE
        assert not stream.done()
        assert [chunk async for chunk in chunks][-1].HasField("usage")
    assert secure.value("chatrpc_tls_reloads_total", result="success") == 1


async def test_a_file_that_becomes_readable_is_read(secure: Service, files: Files) -> None:
    """Deploy hooks copy a file and then change its mode, so it can be unreadable for a moment."""
    files.cert_file.chmod(0o640)
    assert (await _call(secure, files.authority)).code is Code.OK
    assert secure.value("chatrpc_tls_reloads_total", result="success") == 1


async def test_new_authorities_for_callers(mutual: Service, files: Files) -> None:
    caller, newcomers = files.callers.issue_cert("team-a"), trustme.CA()
    assert (await _call(mutual, files.authority, caller)).code is Code.OK
    newcomers.cert_pem.write_to_path(str(files.client_ca_file))
    assert (await _call(mutual, files.authority, caller)).code is Code.UNAVAILABLE
    assert (await _call(mutual, files.authority, newcomers.issue_cert("team-b"))).code is Code.OK


async def test_invalid_files_change_nothing(secure: Service, files: Files, caplog: pytest.LogCaptureFixture) -> None:
    """Half a rotation: the new certificate with the old key, an empty key, or no key for a moment."""
    new = trustme.CA()
    key = files.key_file.read_bytes()
    files.replace(new)
    new_key = files.key_file.read_bytes()
    for number, wrong in enumerate((key, b"", None), 1):
        files.key_file.unlink() if wrong is None else files.key_file.write_bytes(wrong)
        assert (await _call(secure, files.authority)).code is Code.OK, "the old pair must stay in use"
        assert (await _call(secure, files.authority)).code is Code.OK
        assert secure.value("chatrpc_tls_reloads_total", result="failure") == number, "one log line per change"
    causes = [record.cause for record in caplog.records if hasattr(record, "cause")]
    assert [str(files.key_file) in cause for cause in causes] == [True] * 3
    assert "key values mismatch" in causes[0]
    files.key_file.write_bytes(new_key)
    assert (await _call(secure, new)).code is Code.OK


async def test_metrics_of_certificate_expiry(mutual: Service) -> None:
    for role in ("server", "client_ca"):
        assert mutual.value("chatrpc_tls_certificate_not_after_timestamp_seconds", role=role) > time.time()


async def test_an_expired_certificate_is_not_loaded(secure: Service, files: Files) -> None:
    name = "chatrpc_tls_certificate_not_after_timestamp_seconds"
    end = secure.value(name, role="server")
    files.replace(files.authority, not_after=datetime.now(UTC) - timedelta(days=1))
    assert (await _call(secure, files.authority)).code is Code.OK, "the old one must stay in use"
    assert secure.value("chatrpc_tls_reloads_total", result="failure") == 1
    assert secure.value(name, role="server") == end


async def test_no_start_with_an_expired_certificate(files: Files, echo: Echo) -> None:
    files.replace(files.authority, not_after=datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC))
    with pytest.raises(StartError) as caught:
        await Server(settings(echo.base_url, tls=files.tls)).start()
    problem = "expired on 2020-01-02 03:04:05 UTC; use a valid certificate"
    assert str(caught.value) == f"tls.cert_file: {files.cert_file}: {problem}"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("cert_file", b"no certificate", "contains no PEM block (-----BEGIN … CERTIFICATE-----)"),
        ("key_file", b"no key", "contains no PEM block (-----BEGIN … PRIVATE KEY-----)"),
        ("key_file", b"-----BEGIN ENCRYPTED PRIVATE KEY-----", "is encrypted; use an unencrypted private key"),
        ("key_file", b"-----BEGIN PRIVATE KEY-----\nx", "cannot be used with "),
        (
            "key_file",
            trustme.CA().issue_cert("x").private_key_pem.bytes(),
            "key values mismatch; use the key of this certificate",
        ),
        ("client_ca_file", b"-----BEGIN CERTIFICATE-----\nx", "tls.client_ca_file: "),
    ],
    ids=["no-certificate", "no-key", "encrypted", "broken-key", "another-key", "broken-authority"],
)
async def test_invalid_files_prevent_the_start(files: Files, name: str, content: bytes, problem: str) -> None:
    getattr(files, name).write_bytes(content)
    with pytest.raises(StartError) as caught:
        await Server(settings("http://127.0.0.1:1/v1", tls=files.mutual)).start()
    assert str(caught.value).startswith(f"tls.{name}: {getattr(files, name)}: ")
    assert problem in str(caught.value)


async def test_health_without_tls_for_probes(files: Files, echo: Echo) -> None:
    async with service(echo.base_url, tls=files.mutual, health_listen=ANY_PORT) as chat:
        address = str(chat.server.health_address)
        async with grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            asked = health_pb2.HealthCheckRequest()
            assert (await health.Check(asked)).status == health_pb2.HealthCheckResponse.SERVING
            call = ChatCompletionServiceStub(channel).CreateChatCompletion(request())
            assert (await outcome(call)).code is Code.UNIMPLEMENTED, "only health may be served"
            watch = health.Watch(asked)
            await watch.read()
            draining = asyncio.create_task(chat.server.drain())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await draining
            assert (await health.Check(asked)).status == health_pb2.HealthCheckResponse.NOT_SERVING
