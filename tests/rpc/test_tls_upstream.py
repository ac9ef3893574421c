"""TLS to the upstream: verified by default, against the authorities of the settings."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trustme

from support import failure, http, request, service

RESPONSE = http(b'{"choices": []}')


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def base_url(authority: trustme.CA) -> AsyncIterator[str]:
    """Base URL of an upstream with a certificate of that authority."""

    async def response(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(RESPONSE)
        await writer.drain()
        await reader.read()
        writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    server = await asyncio.start_server(response, "127.0.0.1", 0, ssl=context)
    yield f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"
    server.close()


@pytest.mark.parametrize("engine", ["builtin", "httpx"])
async def test_an_unknown_authority_is_not_trusted(base_url: str, engine: str) -> None:
    async with service(base_url, upstream={"http_client": engine, "max_retries": 0}) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNREACHABLE")


@pytest.mark.parametrize("engine", ["builtin", "httpx"])
async def test_the_authority_of_the_settings_is_trusted(
    base_url: str, authority: trustme.CA, tmp_path: Path, engine: str
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with service(base_url, upstream={"http_client": engine, "ca_file": tmp_path / "ca.pem"}) as chat:
        assert await chat.stub.CreateChatCompletion(request())
