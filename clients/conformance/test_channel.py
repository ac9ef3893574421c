"""The channel settings of each client: round robin over all addresses, retries of UNAVAILABLE and CANCELLED only."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from test_conformance import LANGUAGES, drive, encode

from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest
from chatrpc.v1.chat_response_pb2 import CreateChatCompletionResponse
from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceServicer, add_ChatCompletionServiceServicer_to_server
from chatrpc_echo import Echo
from chatrpc_server.server import Server
from chatrpc_server.settings import Address
from support import Service, service, settings

pytestmark = pytest.mark.timeout(1000)

HELLO = [{"role": "user", "content": "Hello!"}]


def call(model: str) -> str:
    request = {"model": model, "messages": HELLO}
    return encode(
        {"name": model, "method": "CreateChatCompletion", "metadata": {}, "timeout_ms": 10_000, "request": request}
    )


def started_calls(running: Service) -> float:
    return running.value("grpc_server_started_total", grpc_method="CreateChatCompletion")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("status", "attempts"), [(503, 3), (429, 1), (500, 1)])
async def test_retries_by_code(language: str, status: int, attempts: int) -> None:
    async with Echo() as echo, service(echo.base_url, upstream={"max_retries": 0}) as running:
        (result,) = await drive(language, str(running.server.address), call(f"echo:status={status}"))
        assert result["code"] != "OK"
        assert started_calls(running) == attempts


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_retry_succeeds(language: str) -> None:
    async with Echo() as echo, service(echo.base_url, upstream={"max_retries": 0}) as running:
        (result,) = await drive(language, str(running.server.address), call("echo:status=503,times=1"))
        assert (result["code"], started_calls(running)) == ("OK", 2)


class Scripted(ChatCompletionServiceServicer):
    """A service that ends its calls with these codes, one after the other, and succeeds after that."""

    def __init__(self, *codes: grpc.StatusCode) -> None:
        self.calls = 0
        self._codes = codes

    async def CreateChatCompletion(  # noqa: N802
        self, request: CreateChatCompletionRequest, context: grpc.aio.ServicerContext
    ) -> CreateChatCompletionResponse:
        self.calls += 1
        if self.calls <= len(self._codes):
            await context.abort(self._codes[self.calls - 1], "scripted")
        return CreateChatCompletionResponse(id="1")


CANCELLED = grpc.StatusCode.CANCELLED
SCRIPTS: dict[str, tuple[Sequence[grpc.StatusCode], str, int]] = {
    "cancelled once": ([CANCELLED], "OK", 2),
    "always cancelled": ([CANCELLED] * 9, "CANCELLED", 3),
    "aborted": ([grpc.StatusCode.ABORTED], "ABORTED", 1),
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("codes", "code", "attempts"), SCRIPTS.values(), ids=SCRIPTS)
async def test_retry_of_a_call_that_a_stopping_server_had_not_begun(
    language: str, codes: Sequence[grpc.StatusCode], code: str, attempts: int
) -> None:
    """gRPC's core ends such a call as CANCELLED. `cancel-before-the-first-message` shows the caller's own cancel."""
    servicer, server = Scripted(*codes), grpc.aio.server()
    add_ChatCompletionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        (result,) = await drive(language, f"127.0.0.1:{port}", call("m"))
    finally:
        await server.stop(None)
    assert (result["code"], servicer.calls) == (code, attempts)


@pytest.fixture
def with_two_addresses(tmp_path: Path) -> tuple[str, ...]:
    """A command that runs a program in which the name `both.test` has two addresses."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n127.0.0.1 both.test\n127.0.0.2 both.test\n")
    command = ("unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh")
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("a name with two addresses needs a mount namespace; run as root with `unshare`")
    return command


@pytest.mark.parametrize("language", LANGUAGES)
async def test_calls_spread_over_all_addresses(language: str, with_two_addresses: tuple[str, ...]) -> None:
    async with Echo() as echo, service(echo.base_url) as one:
        port = one.server.address.port
        other = Server(settings(echo.base_url).model_copy(update={"listen": Address("127.0.0.2", port)}))
        await other.start()
        try:
            calls = "".join(call("echo") for _ in range(20))
            results = await drive(language, f"both.test:{port}", calls, wrapper=with_two_addresses)
        finally:
            await other.stop()
        assert [each["code"] for each in results] == ["OK"] * 20
        counts = [started_calls(Service(server, one.channel, one.stub)) for server in (one.server, other)]
        assert min(counts) >= 5, counts
