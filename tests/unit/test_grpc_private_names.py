"""The private names of grpcio on which `rpc/grpc_core.py` relies, and the bug that it avoids."""

import asyncio
import gc
import re
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from chatrpc_server.rpc import accept_loop, grpc_core, private_names
from chatrpc_server.rpc.health import Health
from chatrpc_server.settings import Address
from support import http2

NOT_UTF8 = http2.headers(1, http2.request_fields(path=b"/\xff"))


async def _attacked(server: grpc.aio.Server) -> None:
    """Send a path that is not UTF-8 to this server."""
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with http2.connect(Address("127.0.0.1", port)) as connection:
        await connection.send(NOT_UTF8)
        await connection.pong()


def test_this_grpcio_has_the_private_names() -> None:
    assert private_names.missing() == [], "grpcio has changed: adapt rpc/grpc_core.py"


def test_all_private_names_are_listed() -> None:
    used = set(re.findall(r"\bcygrpc\.(\w+)", Path(grpc_core.__file__).read_text())) - {"AioServer"}
    listed = {name.rpartition(":")[2].partition(".")[0] for name in private_names.NAMES if "cygrpc:" in name}
    assert used <= listed


@pytest.mark.parametrize(
    "names",
    [{"grpc._cython.cygrpc:absent": None}, {"no.such.module:name": None}, {"grpc:insecure_channel": "other"}],
    ids=["name", "module", "parameters"],
)
async def test_without_a_name_the_server_is_grpcs_own(
    names: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_names, "NAMES", names)
    assert private_names.missing() == list(names)
    assert type(accept_loop.create([], [])) is type(grpc.aio.server())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_grpcs_own_server_still_has_the_bug() -> None:
    """If this fails, grpcio no longer needs the tasks that accept calls in `rpc/grpc_core.py`."""
    server = grpc.aio.server()
    await _attacked(server)
    async with asyncio.timeout(30):
        assert isinstance(await accept_loop.failure(server), UnicodeDecodeError)
    await server.stop(None)


async def test_our_server_has_not() -> None:
    server = accept_loop.create([], [])
    await _attacked(server)
    ended = asyncio.ensure_future(accept_loop.failure(server))
    await asyncio.wait({ended}, timeout=0.1)
    assert not ended.done()
    await server.stop(None)
    ended.cancel()


async def test_a_stop_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_names, "NAMES", {"grpc:absent": None})
    server = accept_loop.create([], [])
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ended = asyncio.ensure_future(accept_loop.failure(server))
    await server.stop(None)
    assert await ended is None


async def test_stops_leave_no_unretrieved_error() -> None:
    loop, unhandled = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    for _ in range(20):
        server = accept_loop.create([], [])
        health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
        server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await server.stop(None)
    await asyncio.sleep(0)
    gc.collect()
    assert not unhandled
