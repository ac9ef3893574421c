"""What each client's channel is set up for: calls spread over all addresses, and UNAVAILABLE alone is tried again."""

import shutil
import subprocess
from pathlib import Path

import pytest
from test_conformance import LANGUAGES, driven, written

from chatrpc_echo import Echo
from chatrpc_server.server import Server
from chatrpc_server.settings import Address
from support import Service, service, settings

pytestmark = pytest.mark.timeout(1000)

HELLO = [{"role": "user", "content": "Hello!"}]


def call(model: str) -> str:
    request = {"model": model, "messages": HELLO}
    return written(
        {"name": model, "method": "CreateChatCompletion", "metadata": {}, "timeout_ms": 10_000, "request": request}
    )


def started(running: Service) -> float:
    return running.value("grpc_server_started_total", grpc_method="CreateChatCompletion")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("status", "attempts"), [(503, 3), (429, 1), (500, 1)])
async def test_only_unavailable_is_tried_again(language: str, status: int, attempts: int) -> None:
    async with Echo() as echo, service(echo.base_url, upstream={"max_retries": 0}) as running:
        (seen,) = await driven(language, str(running.server.address), call(f"echo:status={status}"))
        assert seen["code"] != "OK"
        assert started(running) == attempts


@pytest.mark.parametrize("language", LANGUAGES)
async def test_what_is_available_again_answers(language: str) -> None:
    async with Echo() as echo, service(echo.base_url, upstream={"max_retries": 0}) as running:
        (seen,) = await driven(language, str(running.server.address), call("echo:status=503,times=1"))
        assert (seen["code"], started(running)) == ("OK", 2)


@pytest.fixture
def with_two_addresses(tmp_path: Path) -> tuple[str, ...]:
    """What to run a program with, so that `both.test` is a name with two addresses to it."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n127.0.0.1 both.test\n127.0.0.2 both.test\n")
    command = ("unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh")
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be had here, for a name with two addresses (`unshare --mount`, as root)")
    return command


@pytest.mark.parametrize("language", LANGUAGES)
async def test_calls_spread_over_all_addresses(language: str, with_two_addresses: tuple[str, ...]) -> None:
    async with Echo() as echo, service(echo.base_url) as one:
        port = one.server.address.port
        other = Server(settings(echo.base_url).model_copy(update={"listen": Address("127.0.0.2", port)}))
        await other.start()
        try:
            calls = "".join(call("echo") for _ in range(20))
            seen = await driven(language, f"both.test:{port}", calls, within=with_two_addresses)
        finally:
            await other.stop()
        assert [each["code"] for each in seen] == ["OK"] * 20
        counts = [started(Service(server, one.channel, one.stub)) for server in (one.server, other)]
        assert min(counts) >= 5, counts
