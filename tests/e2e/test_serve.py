"""`serve` as a process: start, calls, drain, exit."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from urllib.request import urlopen

import grpc
import pytest

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from chatrpc_server.process import ports
from chatrpc_server.process.lifecycle import StartError
from chatrpc_server.settings import Address
from support import Exchange, Script, collect, request, sse
from support.process import ANY_PORTS, SECONDS, run, running

KEY = "sk-canary-0123456789abcdef"
PARTS: list[dict[str, object]] = [{"delta": {"content": "a"}}, {"delta": {}, "finish_reason": "stop"}]


async def test_it_serves_and_stops(echo: Echo) -> None:
    with running("serve", *ANY_PORTS, OPENAI_BASE_URL=echo.base_url, OPENAI_API_KEY=KEY) as process:
        first = process.log("serving")
        assert process.lines[0] == process.lines[-1], "the addresses are in the first line"
        async with grpc.aio.insecure_channel(first["listen"]) as channel:
            stub = ChatCompletionServiceStub(channel)
            assert (await stub.CreateChatCompletion(request())).choices[0].message.content
            assert await collect(stub.CreateChatCompletionStream(request()))
        assert echo.requests[0].headers["authorization"] == f"Bearer {KEY}"
        with urlopen(first["metrics"], timeout=SECONDS) as response:
            assert b'grpc_server_handled_total{grpc_code="OK"' in response.read()
        process.signal(signal.SIGTERM)
        process.log("draining")
        assert process.wait() == 0
        assert "stopped" in process.lines[-1]
        assert KEY not in process.output
        assert "Hello!" not in process.output


async def test_metrics_outlast_the_calls(script: Script) -> None:
    """The metrics of a draining process are read while a stream is open, which the test ends."""
    scraped = asyncio.Event()
    chunks = [json.dumps({"id": "c", "choices": [{"index": 0, **part}]}).encode() for part in PARTS]
    head, _, body = sse(*chunks).partition(b"\r\n\r\n")

    async def respond(exchange: Exchange) -> None:
        split = body.index(chunks[1])
        await exchange.send(head + b"\r\n\r\n" + body[:split])
        await scraped.wait()
        await exchange.send(body[split:])

    script.respond_with(respond)
    with running("serve", *ANY_PORTS, OPENAI_BASE_URL=script.base_url) as process:
        first = process.log("serving")
        async with grpc.aio.insecure_channel(first["listen"]) as channel:
            stream = ChatCompletionServiceStub(channel).CreateChatCompletionStream(request())
            received = aiter(stream)
            await anext(received)
            process.signal(signal.SIGTERM)
            process.log("draining")
            with urlopen(first["metrics"], timeout=SECONDS) as response:
                assert b"\nchatrpc_draining 1.0\n" in response.read()
            scraped.set()
            assert [chunk async for chunk in received][-1].choices[0].finish_reason == "stop"
        assert process.wait() == 0


async def test_a_second_signal_stops_at_once(echo: Echo) -> None:
    with running("serve", *ANY_PORTS, "--drain.delay-seconds=600", OPENAI_BASE_URL=echo.base_url) as process:
        process.log("serving")
        process.signal(signal.SIGINT)
        process.log("draining")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_a_signal_during_the_imports() -> None:
    """The kernel does not deliver a signal without a handler to process 1 of a container."""
    program = """if True:
        import os, signal, sys, types
        from chatrpc_server.__main__ import main
        sys.modules["chatrpc_server.cli"] = cli = types.ModuleType("cli")
        cli.main = lambda: os.kill(os.getpid(), signal.SIGTERM)
        main()
    """
    assert subprocess.run([sys.executable, "-c", program], timeout=20, check=False).returncode == 143


def test_localhost_needs_one_available_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name can resolve to an address that this machine lacks, such as ::1 without IPv6."""
    places = [(family, 0, 0, "", (host, 0)) for family, host in ((2, "192.0.2.1"), (2, "127.0.0.1"))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
    ports.check_free("listen", Address("localhost", 0))
    places.pop()
    with pytest.raises(StartError, match="listen: cannot listen on localhost:0: Cannot assign requested address"):
        ports.check_free("listen", Address("localhost", 0))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no dual-stack sockets")
def test_the_ipv6_wildcard_includes_ipv4() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StartError, match="Address already in use"), ports.reserved("listen", Address("::", port)):
            pass


@pytest.mark.parametrize("setting", ["listen", "metrics-listen"])
def test_a_port_in_use(setting: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        result = run("serve", *ANY_PORTS, f"--{setting}={address}")
    assert result.returncode == 1
    problem = f"cannot listen on {address}: Address already in use; use a free one"
    assert result.stderr.endswith(f"chatrpc-server: {setting.replace('-', '_')}: {problem}\n")
    assert "Traceback" not in result.stderr


def test_two_servers_do_not_share_a_port(echo: Echo) -> None:
    with running("serve", *ANY_PORTS) as process:
        address = process.log("serving")["listen"]
        result = run("serve", *ANY_PORTS, f"--listen={address}")
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", int(address.rpartition(":")[2])))
    assert result.returncode == 1
    assert "Address already in use" in result.stderr


def test_all_mistakes_are_reported_together() -> None:
    result = run(
        "serve", "--lisen=x", "--limits.max-in-flight=many", CHATRPC_UPSTREAM__BASE_UR="x", CHATRPC_LOG__LEVEL="loud"
    )
    assert result.returncode == 2
    lines = sorted(result.stderr.splitlines())
    assert lines == [
        "chatrpc-server: --limits.max-in-flight: must be a whole number, more than 0",
        "chatrpc-server: --lisen: unknown setting; did you mean --listen?",
        "chatrpc-server: CHATRPC_LOG__LEVEL in the environment: must be one of debug, info, warning, error",
        "chatrpc-server: CHATRPC_UPSTREAM__BASE_UR in the environment: unknown setting; "
        "did you mean CHATRPC_UPSTREAM__BASE_URL?",
    ]


def test_a_ca_file_without_certificates(tmp_path: pytest.TempPathFactory) -> None:
    ca_file = tmp_path / "ca.pem"  # type: ignore[operator]
    ca_file.write_text("no certificate")
    result = run("serve", *ANY_PORTS, f"--upstream.ca-file={ca_file}")
    assert result.returncode == 1
    assert "upstream.ca_file" in result.stderr
    assert "Traceback" not in result.stderr


def test_listening_beyond_loopback_requires_a_setting() -> None:
    result = run("serve", "--listen=0.0.0.0:0")
    assert result.returncode == 2
    assert "allow_insecure" in result.stderr
