"""Messages to health and reflection that are no messages, and methods that do not exist."""

import asyncio
import itertools
import logging
from typing import Any

import grpc
import pytest

from chatrpc_echo import Echo
from support import ANY_PORT, Service, service

HEALTH = "/grpc.health.v1.Health"
REFLECTION = [f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")]
Code = grpc.StatusCode
MALFORMED = (b"\xff\xff\xff", b"\x0a\x05x", b"\x0a\x01\xff", b"\x07")
"""A bad tag, a truncated text, a text that is no UTF-8, and a bad wire type."""
ODD = (b"", b"\x0a\x00", b"\x22\x00", b"\x2a\x09\x0a\x01x\x10\xff\xff\xff\xff\x07", b"\x2a\x02\x10\x00", b"\x32\x01x")
"""Valid requests for reflection of things that do not exist, and one that asks for nothing."""


async def _code(call: Any) -> grpc.StatusCode:
    """Return the status of a call after reading its messages."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return Code.OK


def _call(channel: grpc.aio.Channel, method: str, message: bytes) -> Any:
    if method in REFLECTION:
        return channel.stream_stream(method)(iter([message]), timeout=60)
    kind = channel.unary_stream if method.endswith("Watch") else channel.unary_unary
    return kind(method)(message, timeout=60)


@pytest.mark.parametrize("where", ["listen", "health_listen"])
async def test_malformed_messages_are_quiet_and_counted(
    echo: Echo, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A traceback for each would let any caller fill the log."""
    methods = [f"{HEALTH}/{method}" for method in ("Check", "Watch")]
    async with service(echo.base_url, reflection=True, health_listen=ANY_PORT) as chat:
        if where == "listen":
            methods += REFLECTION
        address = chat.server.address if where == "listen" else chat.server.health_address
        async with grpc.aio.insecure_channel(str(address)) as channel:
            caplog.set_level(logging.WARNING)
            for method in methods:
                codes = await asyncio.gather(*(_code(_call(channel, method, message)) for message in MALFORMED))
                assert codes == [Code.INVALID_ARGUMENT] * len(MALFORMED), method
            assert await _code(_call(channel, f"{HEALTH}/List", b"\xff")) is Code.INVALID_ARGUMENT
            assert await _code(_call(channel, f"{HEALTH}/Nothing", b"\xff")) is Code.UNIMPLEMENTED
            assert await _code(_call(channel, f"{HEALTH}/Check", b"")) is Code.OK
        rejected = 1 + len(methods) * len(MALFORMED)
        await chat.wait_for(rejected, "chatrpc_admission_rejected_total", reason="malformed")
        await chat.wait_for(1, "grpc_server_handled_total", grpc_method="unknown", grpc_code="Unimplemented")
    assert not caplog.records


async def test_odd_reflection_is_quiet(echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with service(echo.base_url, reflection=True) as chat:
        for method, message in itertools.product(REFLECTION, ODD):
            assert await _code(_call(chat.channel, method, message)) is Code.OK
    assert not caplog.records


async def test_a_watcher_that_leaves_is_quiet(chat: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        watch = _call(chat.channel, f"{HEALTH}/Watch", b"")
        await watch.read()
        watch.cancel()
        assert await watch.code() is Code.CANCELLED
    assert await _code(_call(chat.channel, f"{HEALTH}/Check", b"")) is Code.OK
    assert not caplog.records
