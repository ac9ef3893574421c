"""stderr and stdout that cannot be written: pipes that are not read, closed streams, a full disk."""

import asyncio
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.request import urlopen

import grpc
import pytest
import trustme

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from support import collect, request
from support.process import ANY_PORTS, COMMAND

PIPE_BYTES, BUFFER_BYTES = 4096, 16384
SMALL = f"--log.buffer-bytes={BUFFER_BYTES}"
LIMIT_SECONDS = 60


class Unread:
    """A running service whose stderr is read only by `line`."""

    def __init__(self, popen: "subprocess.Popen[bytes]", stderr: BinaryIO) -> None:
        self.popen, self._stderr = popen, stderr
        self.lines: list[dict[str, Any]] = []

    def log(self, event: str) -> dict[str, Any]:
        """Read lines until this event. Every line is JSON."""
        while line := self._stderr.readline():
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == event:
                return self.lines[-1]
        raise AssertionError(f"no {event} in {self.lines}")

    def rest(self) -> list[dict[str, Any]]:
        """Read until the process closes its stderr."""
        return [json.loads(line) for line in self._stderr]

    def exit_code(self) -> int:
        """Request the exit and wait for it."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(LIMIT_SECONDS)


@contextmanager
def unread(*arguments: str, **environ: str) -> Iterator[Unread]:
    """Run `serve` with a small pipe as stderr."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    with open(reading, "rb", buffering=0) as stderr:
        command = [*COMMAND, "serve", *ANY_PORTS, *arguments]
        popen = subprocess.Popen(command, stderr=writing, env=os.environ | environ, start_new_session=True)
        os.close(writing)
        try:
            yield Unread(popen, stderr)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()


@asynccontextmanager
async def stub_of(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        yield ChatCompletionServiceStub(channel)


async def all_answered(stub: Any, calls: int) -> None:
    """Make calls, 20 at a time; each succeeds."""
    left = iter(range(calls))

    async def some() -> None:
        for _ in left:
            response = await stub.CreateChatCompletion(request(), timeout=LIMIT_SECONDS)
            assert response.choices[0].message.content

    await asyncio.gather(*(some() for _ in range(20)))


def dropped(metrics: str) -> float:
    with urlopen(metrics, timeout=LIMIT_SECONDS) as response:
        return float(re.search(rb"(?m)^chatrpc_log_lines_dropped_total (.*)$", response.read())[1])  # type: ignore[index]


@pytest.mark.parametrize(
    ("workers", "calls"),
    [(1, 300), pytest.param(1, 2000, marks=pytest.mark.slow), pytest.param(2, 2000, marks=pytest.mark.slow)],
)
@pytest.mark.timeout(300)
async def test_a_pipe_that_is_not_read(echo: Echo, workers: int, calls: int) -> None:
    with unread(SMALL, f"--workers={workers}", OPENAI_BASE_URL=echo.base_url) as service:
        first = service.log("metrics_serving" if workers > 1 else "serving")
        metrics = first["metrics"]
        if workers > 1:
            first = service.log("serving")
            service.log("workers_started")
        async with stub_of(first["listen"]) as stub:
            assert dropped(metrics) == 0
            await all_answered(stub, calls)
            lost = dropped(metrics)
            assert lost > 0
            # The log continues when it is read again, and says how many lines are missing.
            gap = await asyncio.to_thread(service.log, "log_lines_dropped")
            assert gap["lines"] > 0
            reader = asyncio.create_task(asyncio.to_thread(service.rest))
            await stub.CreateChatCompletion(request(), metadata=[("x-request-id", "the-last-call")])
        assert await asyncio.to_thread(service.exit_code) == 0
        rest = await reader
        assert any(line.get("request_id") == "the-last-call" for line in rest)
        assert rest[-1]["event"] == "stopped"
        lines = [*service.lines, *rest]
        assert sum(line["event"] == "call" for line in lines) + dropped_lines(lines) >= calls + 1


def dropped_lines(lines: list[dict[str, Any]]) -> int:
    return sum(line["lines"] for line in lines if line["event"] == "log_lines_dropped")


@pytest.mark.slow
async def test_a_pipe_that_is_never_read_does_not_hold_the_exit(echo: Echo) -> None:
    with unread(SMALL, OPENAI_BASE_URL=echo.base_url) as service:
        async with stub_of(service.log("serving")["listen"]) as stub:
            await all_answered(stub, 100)
        assert service.exit_code() == 0


@pytest.mark.timeout(300)
async def test_failed_handshakes_do_not_block_on_the_pipe(echo: Echo, tmp_path: Path) -> None:
    """gRPC's core writes its own lines, from the threads that serve the calls."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(tmp_path / "key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    tls = [f"--tls.cert-file={tmp_path / 'cert'}", f"--tls.key-file={tmp_path / 'key'}"]
    with unread(*tls, OPENAI_BASE_URL=echo.base_url) as service:
        port = int(service.log("serving")["listen"].rpartition(":")[2])

        def fail() -> None:
            for _ in range(100):
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.settimeout(LIMIT_SECONDS)
                    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    with suppress(ConnectionError):
                        while connection.recv(4096):
                            pass

        await asyncio.to_thread(fail)
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        options = [("grpc.enable_http_proxy", 0)]
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options) as channel:
            await all_answered(ChatCompletionServiceStub(channel), 20)
        failure = service.log("tls_handshake_failed")
        assert "HTTP_REQUEST" in failure["cause"]
        reader = asyncio.create_task(asyncio.to_thread(service.rest))
        assert await asyncio.to_thread(service.exit_code) == 0
        events = [line["event"] for line in [*service.lines, *await reader]]
        assert 1 <= events.count("tls_handshake_failed") <= 50, "a flood is limited"
        assert set(events) <= {"serving", "tls_handshake_failed", "call", "draining", "stopped"}


STREAMS = {
    "all-closed": "0<&- 1>&- 2>&-",
    "full-disk": "1>/dev/full 2>/dev/full",
    "stderr-closed": "2>&-",
    "stdout-closed": "1>&-",
}


@pytest.mark.parametrize(
    "streams",
    [
        "all-closed",
        pytest.param("full-disk", marks=pytest.mark.slow),
        pytest.param("stderr-closed", marks=pytest.mark.slow),
        pytest.param("stdout-closed", marks=pytest.mark.slow),
    ],
)
async def test_streams_that_cannot_be_written(echo: Echo, streams: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = f'exec "$@" {STREAMS[streams]}'
    command = ["sh", "-c", script, "sh", *COMMAND, "serve", *ANY_PORTS, f"--listen={address}"]
    process = await asyncio.create_subprocess_exec(*command, env=os.environ | {"OPENAI_BASE_URL": echo.base_url})
    try:
        async with stub_of(address) as stub:
            response = await stub.CreateChatCompletion(request(), wait_for_ready=True, timeout=LIMIT_SECONDS)
            assert response.choices
            assert await collect(stub.CreateChatCompletionStream(request(), timeout=LIMIT_SECONDS))
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), LIMIT_SECONDS) == 0
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize(
    ("arguments", "stdout", "code", "error"),
    [
        (["check-config"], "| true", 141, ""),
        (["check-config"], ">/dev/full", 1, "chatrpc-server: stdout: cannot write: No space left on device"),
        pytest.param(["check-config", "--listen=nonsense"], "2>/dev/full", 2, "", marks=pytest.mark.slow),
        pytest.param(["check-config"], ">&-", 0, "", marks=pytest.mark.slow),
        pytest.param(["echo", "--listen=127.0.0.1:0"], "| true", 141, "", marks=pytest.mark.slow),
        pytest.param(["demo"], "| true", 141, "", marks=pytest.mark.slow),
    ],
)
def test_commands_whose_output_cannot_be_written(arguments: list[str], stdout: str, code: int, error: str) -> None:
    script = f'"$@" {stdout}; echo "code ${{PIPESTATUS[0]}}" >&2'
    result = subprocess.run(
        ["bash", "-c", script, "bash", *COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    *lines, last = result.stderr.splitlines()
    assert last == f"code {code}"
    assert "\n".join(lines).startswith(error)
    assert len(lines) == bool(error)
