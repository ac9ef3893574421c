"""Every client's tour prints the same lines, and reports an error in one line."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from test_conformance import LANGUAGES, built

from chatrpc_echo import Echo
from support import Service, service

pytestmark = pytest.mark.timeout(1000)


async def tour(language: str, *arguments: object, **environ: str) -> tuple[int, str, str]:
    folder = built(language)
    process = await asyncio.create_subprocess_exec(
        *LANGUAGES[language].tour,
        *map(str, arguments),
        cwd=folder,
        env=os.environ | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    except BaseException:
        process.kill()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def serve(folder: Path | None = None) -> AsyncIterator[Service]:
    """Run the service, with TLS if there is a folder for the certificates."""
    changes = {}
    if folder:
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        certificate.private_key_pem.write_to_path(folder / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
        authority.cert_pem.write_to_path(folder / "ca.pem")
        trustme.CA().cert_pem.write_to_path(folder / "another.pem")
        changes["tls"] = {"cert_file": str(folder / "cert.pem"), "key_file": str(folder / "key.pem")}
    async with Echo() as echo, service(echo.base_url, upstream={"max_retries": 0}, **changes) as running:
        yield running


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_tour_runs_all_examples(language: str) -> None:
    async with serve() as running:
        result = await tour(language, "--target", running.server.address)
        assert result == await tour("python", "--target", running.server.address)
    code, out, err = result
    assert (code, err) == (0, "")
    names = ["unary", "stream", "deadline", "cancel", "error", "tools", "image"]
    assert [line.split()[0] for line in out.splitlines()] == names
    assert "\ndeadline  DEADLINE_EXCEEDED\ncancel    stopped after 3 messages\n" in out
    assert "\nerror     RESOURCE_EXHAUSTED UPSTREAM_RATE_LIMITED, retry in 7 s, upstream's HTTP status 429\n" in out


@pytest.mark.parametrize("language", LANGUAGES)
async def test_tls(language: str, tmp_path: Path) -> None:
    async with serve(tmp_path) as running:
        target = f"localhost:{running.server.address.port}"
        code, out, err = await tour(language, "--target", target, "--ca-file", tmp_path / "ca.pem", "--image-bytes", 9)
        assert (code, err) == (0, "")
        assert len(out.splitlines()) == 7
        await assert_failure(language, r"UNAVAILABLE: .+", "--target", target, "--ca-file", tmp_path / "another.pem")
        await assert_failure(language, r"UNAVAILABLE: .+", "--target", target, "--tls")
        await assert_failure(language, r"UNAVAILABLE: .+", "--target", target)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_no_server(language: str) -> None:
    await assert_failure(language, r"UNAVAILABLE: .+", "--target", "127.0.0.1:1", "--timeout", 10)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_an_unknown_name(language: str) -> None:
    await assert_failure(
        language, r"(UNAVAILABLE|DEADLINE_EXCEEDED): .+", "--target", "unknown.invalid:1", "--timeout", 5
    )


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_missing_file(language: str) -> None:
    await assert_failure(language, r".*/nowhere/ca\.pem.*", "--target", "127.0.0.1:1", "--ca-file", "/nowhere/ca.pem")


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_message_that_is_too_large(language: str) -> None:
    async with serve() as running:
        await assert_failure(
            language, r"RESOURCE_EXHAUSTED: .+", "--target", running.server.address, "--image-bytes", 25 << 20
        )


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_server_that_stops(language: str) -> None:
    """The server stops during the stream that the tour cancels after three slow messages."""
    async with serve() as running:

        async def stop() -> None:
            while not running.value("grpc_server_started_total", grpc_method="CreateChatCompletion"):
                await asyncio.sleep(0.001)
            await running.server.stop()

        stopping = asyncio.create_task(stop())
        await assert_failure(
            language, r"[A-Z_]+( \([A-Z_]+\))?: .+", "--target", running.server.address, "--timeout", 5
        )
        await stopping


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("key", ["secret\n", "s\u00e9cret"])
async def test_an_invalid_key_is_not_shown(language: str, key: str) -> None:
    async with serve() as running:
        code, out, err = await tour(language, "--target", running.server.address, CHATRPC_API_KEY=key)
    assert (code, out) == (1, "")
    assert re.fullmatch("chatrpc: .+\n", err), err
    assert key.strip() not in err


@pytest.mark.parametrize("language", LANGUAGES)
async def test_wrong_usage(language: str) -> None:
    code, out, err = await tour(language, "--no-such-flag")
    assert (code, out) == (2, "")
    assert "no-such-flag" in err


async def assert_failure(language: str, line: str, *arguments: object) -> None:
    """Assert that the tour exits with 1 and this one line on standard error."""
    code, _, err = await tour(language, *arguments)
    assert re.fullmatch(f"chatrpc: {line}\n", err), err
    assert code == 1
