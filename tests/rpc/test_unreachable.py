"""The words for an upstream that cannot be reached: each names the cause, and none a key or a password."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from support import failure, request, service
from support.faults import base_url_of
from support.http_clients import engines, serving

LIMIT = "see upstream.connect_timeout_seconds"
UNKNOWN = "no-such-host.example"
"""A host name that does not resolve, without a query to a name server."""


@pytest.fixture(autouse=True)
def _unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if host in (UNKNOWN, UNKNOWN.encode()):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def closed_port() -> int:
    """A port that refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


async def words(base_url: str, **upstream: Any) -> str:
    """Return the message of a failed call, which the reason UPSTREAM_UNREACHABLE must have."""
    settings = {"max_retries": 0, "api_key": "canary-key-7f3a", **upstream}
    async with service(base_url, upstream=settings) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNREACHABLE")
    assert "canary" not in str(failed)
    return failed.message


@engines
async def test_no_address(name: str) -> None:
    assert await words(f"http://{UNKNOWN}/v1", http_client=name) == (
        "cannot connect to the upstream: its host name cannot be resolved; check upstream.base_url"
    )


@engines
async def test_no_address_of_the_proxy(name: str) -> None:
    proxy = f"http://canary:canary@{UNKNOWN}:3128"
    assert await words("https://localhost/v1", http_client=name, proxy=proxy) == (
        "cannot connect to the proxy: its host name cannot be resolved; check upstream.proxy"
    )


@engines
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_refused(name: str, host: str, closed_port: int) -> None:
    assert await words(f"https://{host}:{closed_port}/v1", http_client=name) == (
        "cannot connect to the upstream: it refused the connection; check upstream.base_url"
    )


@engines
async def test_refused_by_the_proxy(name: str, closed_port: int) -> None:
    proxy = f"http://canary:canary@127.0.0.1:{closed_port}"
    assert await words("http://localhost/v1", http_client=name, proxy=proxy) == (
        "cannot connect to the proxy: it refused the connection; check upstream.proxy"
    )


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept a connection, and never respond."""
    await reader.read()
    await asyncio.Event().wait()


@engines
async def test_a_silent_handshake(name: str) -> None:
    async with serving(hang) as port:
        found = await words(f"https://127.0.0.1:{port}/v1", http_client=name, connect_timeout_seconds=0.2)
    assert found == f"no connection to the upstream within 0.2 s: the TLS handshake was not completed; {LIMIT}"


@engines
async def test_a_silent_proxy(name: str) -> None:
    async with serving(hang) as port, asyncio.timeout(60):
        proxy = f"http://canary:canary@127.0.0.1:{port}"
        found = await words("https://localhost/v1", http_client=name, proxy=proxy, connect_timeout_seconds=0.2)
    assert found == f"no connection to the upstream through the proxy within 0.2 s: the proxy did not respond; {LIMIT}"


@engines
async def test_a_silent_handshake_through_a_proxy(name: str) -> None:
    async def silent_behind(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await hang(reader, writer)

    async with serving(silent_behind) as port, asyncio.timeout(60):
        proxy = f"http://canary:canary@127.0.0.1:{port}"
        found = await words("https://localhost/v1", http_client=name, proxy=proxy, connect_timeout_seconds=0.2)
    where = "through the proxy within 0.2 s: the TLS handshake was not completed"
    assert found == f"no connection to the upstream {where}; {LIMIT}"


@engines
async def test_a_silent_name_server(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve, stop = socket.getaddrinfo, threading.Event()

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        return stop.wait(60) and [] if host == "silent.example" else resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    found = await words("http://silent.example/v1", http_client=name, connect_timeout_seconds=0.2)
    stop.set()
    assert found == f"no connection to the upstream within 0.2 s: its host name was not resolved; {LIMIT}"


@engines
async def test_a_silent_address(name: str) -> None:
    async with base_url_of("unconnectable") as base_url:
        found = await words(base_url, http_client=name, connect_timeout_seconds=0.2)
    assert found == f"no connection to the upstream within 0.2 s; {LIMIT}"


async def test_a_server_without_tls() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 canary\r\n")
        await reader.read()

    async with serving(plain) as port:
        for name in ("builtin", "httpx"):
            found = await words(f"https://127.0.0.1:{port}/v1", http_client=name)
            assert found.startswith("cannot connect to the upstream: TLS failed: ")


CERTIFICATES = {
    # host of the certificate, whether its authority is known, the words
    "unknown authority": ("localhost", False, "not trusted: unable to get local issuer certificate; check"),
    "another host": ("other.example", True, "for another host; check upstream.base_url"),
    "another address": ("127.0.0.2", True, "for another host; check upstream.base_url"),
}


@engines
@pytest.mark.parametrize(("host", "is_known", "expected"), CERTIFICATES.values(), ids=CERTIFICATES)
async def test_certificates(
    tls_server: Callable[[str], Any], ca_file: Path, name: str, host: str, is_known: bool, expected: str
) -> None:
    port = await tls_server(host)
    target = "127.0.0.1" if host == "127.0.0.2" else "localhost"
    known = {"ca_file": ca_file} if is_known else {}
    found = await words(f"https://{target}:{port}/v1", http_client=name, **known)
    assert found.startswith("cannot connect to the upstream: its certificate is ")
    assert expected in found


@engines
async def test_a_connection_that_closes_in_the_handshake(name: str) -> None:
    async def closing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with serving(closing) as port:
        found = await words(f"https://127.0.0.1:{port}/v1", http_client=name)
    assert found.startswith("cannot connect to the upstream: ")
    assert "connection closed" in found or "eof" in found


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


@pytest.fixture
async def tls_server(authority: trustme.CA) -> AsyncIterator[Callable[[str], Any]]:
    """A function that starts a TLS server with a certificate for a host, and returns its port."""
    servers: list[asyncio.Server] = []

    async def start(host: str) -> int:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(host).configure_cert(context)
        servers.append(await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context))
        return int(servers[-1].sockets[0].getsockname()[1])

    yield start
    for server in servers:
        server.close()
