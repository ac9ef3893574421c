"""Requests that end the accept loop of grpc.aio (`rpc/accept_loop.py`), and the end of the loop by another cause."""

import asyncio
import os
import ssl
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from chatrpc_server.server import Server
from chatrpc_server.settings import Address
from support import ANY_PORT, Service, http2, outcome, request, service, settings
from support.process import ANY_PORTS, running

PATHS = {
    "not-utf8": b"/\xff",
    "the-issue": b"/\xff\xfe\xfd",
    "latin-1": "/chatrpc.v1.ChatCompletionService/Créate".encode("latin-1"),
    "truncated-utf8": b"/\xe2\x82",
    "surrogate": b"/\xed\xa0\x80",
    "overlong": b"/\xc0\xaf",
    "valid-utf8": "/ünknown/€".encode(),
    "no-slash": b"chatrpc",
    "empty": b"",
    "large": b"/" + b"\xff" * 6000,
}
LONG = request(model="echo:pieces=20,pace=0.05")
Status = health_pb2.HealthCheckResponse
FALLBACK = """
from chatrpc_server.rpc import private_names
private_names.NAMES["grpc:absent"] = None
"""


async def _attack(chat: Service, path: bytes, *, health: bool = False) -> None:
    address = chat.server.health_address if health else chat.server.address
    assert address
    async with http2.connect(address) as connection:
        await connection.send(http2.headers(1, http2.request_fields(path=path)))
        await connection.pong()  # the service has read the request


async def _health(chat: Service) -> int:
    """Return the state that the address of health checks reports."""
    async with grpc.aio.insecure_channel(str(chat.server.health_address)) as channel:
        return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())).status


async def test_no_path_ends_the_server(echo: Echo) -> None:
    async with service(echo.base_url, health_listen=ANY_PORT) as chat:
        calls = [asyncio.ensure_future(outcome(chat.stub.CreateChatCompletionStream(LONG))) for _ in range(3)]
        await chat.wait_for(3, "chatrpc_rpcs_in_flight")
        for path in PATHS.values():
            await _attack(chat, path)
            await _attack(chat, path, health=True)
            assert (await outcome(chat.stub.CreateChatCompletion(request()))).code is grpc.StatusCode.OK, path
            assert await _health(chat) == Status.SERVING, path
        assert {call.code for call in await asyncio.gather(*calls)} == {grpc.StatusCode.OK}
        await chat.wait_for(2 * len(PATHS), "grpc_server_handled_total", grpc_code="Unimplemented")  # on both addresses


async def test_no_path_ends_a_server_with_tls(echo: Echo, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    files = {"cert_file": tmp_path / "cert.pem", "key_file": tmp_path / "key.pem"}
    files["cert_file"].write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(files["key_file"])
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    async with service(echo.base_url, tls={name: str(file) for name, file in files.items()}) as chat:
        for number in range(5):
            async with http2.connect(chat.server.address, tls=context) as connection:
                await connection.send(http2.headers(1, http2.request_fields(path=b"/\xff", scheme=b"https")))
                assert await connection.pong()
            await chat.wait_for(number + 1, "grpc_server_handled_total", grpc_code="Unimplemented")


@pytest.mark.slow
async def test_no_path_ends_a_worker(tmp_path: Path) -> None:
    arguments = ("--workers=2", "--upstream.base-url=http://127.0.0.1:9/v1")
    with running("serve", *ANY_PORTS, *arguments) as serve:
        listen = serve.log("serving")["listen"]
        serve.log("workers_started")
        for _ in range(50):  # the kernel distributes the connections over both
            await _attack_process(listen)
        async with grpc.aio.insecure_channel(listen) as channel:
            response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert response.status == response.SERVING
        serve.signal()
        assert serve.wait() == 0
        assert "worker_exited" not in serve.output


async def test_no_path_disturbs_a_drain(echo: Echo) -> None:
    async with service(echo.base_url, drain={"grace_seconds": 30}) as chat:
        async with http2.connect(chat.server.address) as connection:
            call = asyncio.ensure_future(outcome(chat.stub.CreateChatCompletionStream(LONG)))
            await chat.wait_for(1, "chatrpc_rpcs_in_flight")
            draining = asyncio.ensure_future(chat.server.drain())
            await chat.wait_for(1, "chatrpc_draining")
            for number in range(10):
                await connection.send(http2.headers(2 * number + 1, http2.request_fields(path=b"/\xff")))
                await asyncio.sleep(0)
            assert (await call).code is grpc.StatusCode.OK
        await draining
        assert not chat.server._failed.is_set()


async def test_200_attacks_leave_nothing_behind(chat: Service) -> None:
    await chat.stub.CreateChatCompletion(request())
    async with http2.connect(chat.server.address) as connection:
        await connection.pong()
        before = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
        for number in range(200):
            await connection.send(http2.headers(2 * number + 1, http2.request_fields(path=b"/\xff%d" % number)))
        await chat.wait_for(200, "grpc_server_handled_total", grpc_code="Unimplemented")
        async with asyncio.timeout(30):
            while (len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))) != before:
                await asyncio.sleep(0.01)


async def test_an_unknown_method_is_unimplemented(chat: Service) -> None:
    for name in ("/chatrpc.v1.ChatCompletionService/Nothing", "/nothing.v1.Nothing/Nothing"):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await chat.channel.unary_unary(name)(b"")
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await chat.wait_for(2, "grpc_server_handled_total", grpc_code="Unimplemented")


async def _break_the_loop(server: Server) -> None:
    """Let the loop fail by the test's own means, because no request is known that ends it."""

    def fail() -> None:
        raise OSError("the loop broke")

    core = server._grpc._server  # type: ignore[attr-defined]
    core._request_call = fail
    async with http2.connect(server.address) as connection:
        await connection.send(http2.headers(1, http2.request_fields(path=b"/unknown")))
        await server._failed.wait()


async def test_if_the_loop_fails_no_address_is_healthy(echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    async with service(echo.base_url, health_listen=ANY_PORT) as chat, asyncio.timeout(30):
        await _break_the_loop(chat.server)
        assert await _health(chat) == Status.NOT_SERVING
        errors = [record for record in caplog.records if vars(record).get("event") == "accept_loop_failed"]
        assert [(record.levelname, vars(record)["setting"]) for record in errors] == [("ERROR", "listen")]


async def test_if_the_loop_fails_the_run_ends(echo: Echo) -> None:
    """It ends at once although a call is in flight and no stop was requested."""
    server = Server(settings(echo.base_url))
    started = asyncio.Event()
    run = asyncio.ensure_future(server.run(asyncio.Event().wait, started.set))
    await started.wait()
    async with grpc.aio.insecure_channel(str(server.address)) as channel, asyncio.timeout(30):
        call = ChatCompletionServiceStub(channel).CreateChatCompletionStream(request(model="echo:pieces=900,pace=0.1"))
        await call.read()
        await _break_the_loop(server)
        assert await run is False
        assert await call.code() is not grpc.StatusCode.OK


def _sitecustomize(folder: Path) -> dict[str, str]:
    """Return variables that give each process the server for a grpcio without the private names."""
    (folder / "sitecustomize.py").write_text(FALLBACK)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


async def test_without_the_private_names_calls_succeed_and_an_attack_ends_the_process(
    echo: Echo, tmp_path: Path
) -> None:
    upstream = f"--upstream.base-url={echo.base_url}"
    with running("serve", *ANY_PORTS, upstream, **_sitecustomize(tmp_path)) as serve:
        listen = serve.log("serving")["listen"]
        async with grpc.aio.insecure_channel(listen) as channel:
            call = ChatCompletionServiceStub(channel).CreateChatCompletion(request(), timeout=60)
            assert (await call).choices
            assert "x-request-id" in dict(await call.initial_metadata())
        await _attack_process(listen)
        failed = serve.log("accept_loop_failed")
        assert failed["level"] == "error"
        assert serve.wait() == 1


@pytest.mark.slow
async def test_without_the_private_names_a_worker_is_replaced(tmp_path: Path) -> None:
    arguments = ("--workers=2", "--upstream.base-url=http://127.0.0.1:9/v1")
    with running("serve", *ANY_PORTS, *arguments, **_sitecustomize(tmp_path)) as serve:
        listen = serve.log("serving")["listen"]
        serve.log("workers_started")
        await _attack_process(listen)
        assert serve.log("worker_exited")["cause"] == "exit code 1"
        serve.log("worker_restarted")


async def _attack_process(listen: str) -> None:
    async with http2.connect(Address.parse(listen)) as connection:
        await connection.send(http2.headers(1, http2.request_fields(path=b"/\xff")))
        await connection.pong()
