"""TLS to the upstream: verified by default, against the authorities of the settings, with a certificate if required."""

import asyncio
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from chatrpc_server.cli import main
from chatrpc_server.process.lifecycle import StartError
from chatrpc_server.server import Server
from support import failure, http, outcome, request, service, settings
from support.http_clients import engines
from support.settings_loading import load_from, mistakes

RESPONSE = http(b'{"choices": []}')
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


@pytest.fixture
def ca_folder(ca_file: Path) -> Path:
    """The folder of that file, as OpenSSL reads folders."""
    subprocess.run(["openssl", "rehash", ca_file.parent], check=True)
    return ca_file.parent


@pytest.fixture
def client(authority: trustme.CA, tmp_path: Path) -> dict[str, Path]:
    """The settings of a certificate that the upstream accepts."""
    certificate = authority.issue_cert("client.example")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "client.crt"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "client.key"))
    return {"client_cert_file": tmp_path / "client.crt", "client_key_file": tmp_path / "client.key"}


async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(RESPONSE)
    await writer.drain()
    await reader.read()
    writer.close()


def tls_of(authority: trustme.CA, *, requires_certificate: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    if requires_certificate:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@asynccontextmanager
async def serving(context: ssl.SSLContext, handler: Handler = respond) -> AsyncIterator[str]:
    """The base URL of an upstream with this TLS."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=context)
    yield f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"
    server.close()


@pytest.fixture
async def base_url(authority: trustme.CA) -> AsyncIterator[str]:
    """Base URL of an upstream with a certificate of that authority."""
    async with serving(tls_of(authority)) as url:
        yield url


@engines
async def test_an_unknown_authority_is_not_trusted(base_url: str, name: str) -> None:
    async with service(base_url, upstream={"http_client": name, "max_retries": 0}) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNREACHABLE")


@engines
@pytest.mark.parametrize("setting", ["ca_file", "extra_ca_file", "extra_ca_dir"])
async def test_the_authority_of_the_settings_is_trusted(
    base_url: str, ca_file: Path, ca_folder: Path, name: str, setting: str
) -> None:
    value = f"{ca_folder}:" if setting == "extra_ca_dir" else ca_file
    async with service(base_url, upstream={"http_client": name, setting: value}) as chat:
        assert await chat.stub.CreateChatCompletion(request())


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
async def test_the_authorities_of_the_environment_are_trusted_beside_certifis(
    base_url: str, ca_file: Path, ca_folder: Path, variable: str
) -> None:
    value = str(ca_file) if variable == "SSL_CERT_FILE" else str(ca_folder)
    loaded = load_from(environ={variable: value}).upstream
    given = {"extra_ca_file": loaded.extra_ca_file, "extra_ca_dir": loaded.extra_ca_dir}
    async with service(base_url, upstream=given) as chat:
        assert await chat.stub.CreateChatCompletion(request())


async def test_ca_file_excludes_all_others(base_url: str, ca_file: Path, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    given = {"ca_file": tmp_path / "other.pem", "extra_ca_file": ca_file, "max_retries": 0}
    async with service(base_url, upstream=given) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert failed.reason == "UPSTREAM_UNREACHABLE"


@engines
async def test_a_required_certificate(authority: trustme.CA, ca_file: Path, client: dict[str, Path], name: str) -> None:
    given = {"http_client": name, "ca_file": ca_file, "max_retries": 0}
    async with serving(tls_of(authority, requires_certificate=True)) as url:
        async with service(url, upstream={**given, **client}) as chat:
            assert await chat.stub.CreateChatCompletion(request())
        async with service(url, upstream=given) as chat:
            failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNREACHABLE")


@contextmanager
def alerting(context: ssl.SSLContext) -> Iterator[str]:
    """The base URL of an upstream that sends TLS alerts, as servers other than asyncio's do."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                accepted, _ = listening.accept()
            except OSError:
                return  # closed
            try:
                context.wrap_socket(accepted, server_side=True).close()
            except OSError:
                accepted.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"https://localhost:{listening.getsockname()[1]}/v1"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


@engines
@pytest.mark.parametrize("is_known", [True, False], ids=["of an unknown authority", "missing"])
async def test_a_rejected_certificate_is_named(
    authority: trustme.CA, ca_file: Path, client: dict[str, Path], name: str, is_known: bool
) -> None:
    given: dict[str, Any] = {"http_client": name, "ca_file": ca_file, "max_retries": 0}
    context = tls_of(trustme.CA() if is_known else authority, requires_certificate=True)
    authority.issue_cert("localhost").configure_cert(context)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # newer ones reject it after the handshake, often too late
    with alerting(context) as url:
        async with service(url, upstream={**given, **(client if is_known else {})}) as chat:
            failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert failed.reason == "UPSTREAM_UNREACHABLE"
    assert failed.message.startswith("cannot connect to the upstream: it rejected the TLS handshake: ")
    assert failed.message.endswith("; check upstream.client_cert_file")


@engines
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"], ids=["head", "body"])
async def test_bytes_that_are_not_tls_are_the_upstreams_fault(
    authority: trustme.CA, ca_file: Path, name: str, sent: bytes
) -> None:
    async def break_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()
        os.write(writer.get_extra_info("socket").fileno(), b"\x17\x03\x03\x00\x20" + b"x" * 32)
        await reader.read()
        writer.close()

    given = {"http_client": name, "ca_file": ca_file, "max_retries": 0}
    async with serving(tls_of(authority), break_tls) as url, service(url, upstream=given) as chat:
        failed = await outcome(chat.stub.CreateChatCompletion(request()))
    assert failed.code is grpc.StatusCode.UNAVAILABLE
    # Both arrive together on a busy machine, and asyncio then drops what it had decrypted.
    assert failed.reason in (("UPSTREAM_TRUNCATED", "UPSTREAM_UNREACHABLE") if sent else ("UPSTREAM_UNREACHABLE",))


@pytest.fixture
def files(authority: trustme.CA, client: dict[str, Path], ca_file: Path, tmp_path: Path) -> Path:
    """A folder of files, valid and invalid."""
    authority.issue_cert("other.example").private_key_pem.write_to_path(str(tmp_path / "other.key"))
    (tmp_path / "text.pem").write_text("no certificate\n")
    (tmp_path / "torn.pem").write_bytes((tmp_path / "client.crt").read_bytes()[:300])
    command = ["openssl", "ec", "-in", "client.key", "-out", "locked.key", "-aes256", "-passout", "pass:secret"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


CERTIFICATES = "cannot load certificates: "
INVALID: dict[str, tuple[dict[str, str], list[str]]] = {
    # the settings, and the start of each mistake
    "no authority": ({"ca_file": "text.pem"}, [f"upstream.ca_file: {{}}/text.pem: {CERTIFICATES}no cert"]),
    "torn authority": ({"ca_file": "torn.pem"}, [f"upstream.ca_file: {{}}/torn.pem: {CERTIFICATES}not PEM"]),
    "missing authority": ({"ca_file": "none"}, [f"upstream.ca_file: {{}}/none: {CERTIFICATES}No such file"]),
    "extra authorities": (
        {"extra_ca_file": "text.pem"},
        [f"upstream.extra_ca_file (or SSL_CERT_FILE): {{}}/text.pem: {CERTIFICATES}no cert"],
    ),
    "torn certificate": (
        {"client_cert_file": "torn.pem", "client_key_file": "client.key"},
        [f"upstream.client_cert_file: {{}}/torn.pem: {CERTIFICATES}not PEM"],
    ),
    "another key": (
        {"client_cert_file": "client.crt", "client_key_file": "other.key"},
        ["upstream.client_key_file: {}/other.key: cannot be used with {}/client.crt: key values mismatch"],
    ),
    "no key": (
        {"client_cert_file": "client.crt", "client_key_file": "text.pem"},
        ["upstream.client_key_file: {}/text.pem: cannot be used with {}/client.crt: not PEM"],
    ),
    "missing key": (
        {"client_cert_file": "client.crt", "client_key_file": "none"},
        ["upstream.client_key_file: {}/none: cannot be used with {}/client.crt: No such file"],
    ),
    "encrypted key": (
        {"client_cert_file": "client.crt", "client_key_file": "locked.key"},
        ["upstream.client_key_file: {}/locked.key: is encrypted; use an unencrypted private key"],
    ),
    "several": (
        {"ca_file": "text.pem", "client_cert_file": "client.crt", "client_key_file": "other.key"},
        ["upstream.ca_file: ", "upstream.client_key_file: "],
    ),
}


@pytest.mark.parametrize(("given", "expected"), INVALID.values(), ids=INVALID)
async def test_invalid_files_are_named_at_start(given: dict[str, str], expected: list[str], files: Path) -> None:
    upstream = {setting: files / name for setting, name in given.items()}
    with pytest.raises(StartError) as caught:
        await Server(settings("https://localhost/v1", upstream=upstream)).start()
    found = str(caught.value).split("; upstream.")
    assert len(found) == len(expected)
    for mistake, start in zip(found, expected, strict=True):
        assert f"upstream.{mistake.removeprefix('upstream.')}".startswith(start.replace("{}", str(files)))


@pytest.mark.parametrize(("given", "expected"), INVALID.values(), ids=INVALID)
def test_check_config_rejects_what_the_start_rejects(
    given: dict[str, str], expected: list[str], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--upstream.{setting.replace('_', '-')}={files / name}" for setting, name in given.items()]
    assert main(["check-config", *flags]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == len(expected)
    if "none" not in given.values():  # a missing file is named by its flag
        for line, start in zip(err.splitlines(), expected, strict=True):
            assert line.startswith("chatrpc-server: " + start.replace("{}", str(files)))


def test_check_config_accepts_valid_files(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"ca-file": "ca.pem", "client-cert-file": "client.crt", "client-key-file": "client.key"}
    assert main(["check-config", *(f"--upstream.{setting}={files / name}" for setting, name in names.items())]) == 0
    assert not capsys.readouterr().err


def test_a_missing_file_names_its_setting_or_variable(tmp_path: Path) -> None:
    missing = "the file cannot be read: No such file or directory; name a readable file"
    environ = {"SSL_CERT_FILE": str(tmp_path / "none"), "SSL_CERT_DIR": f"{tmp_path}:{tmp_path / 'none'}"}
    flags = (f"--upstream.client-cert-file={tmp_path / 'none'}",)
    assert mistakes(flags=flags, environ=environ) == [
        f"--upstream.client-cert-file: {missing}",
        f"SSL_CERT_FILE in the environment: {missing}",
        "SSL_CERT_DIR in the environment: must be directories that exist, separated by :",
        "upstream.client_key_file, at its default: must be set, because client_cert_file is set",
    ]
