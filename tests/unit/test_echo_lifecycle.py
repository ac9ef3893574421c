"""The embedded upstream: callers that disconnect, start and stop."""

import asyncio
import time

import aiohttp
import pytest

from chatrpc_echo import Echo
from support.echo_caller import (
    WAIT_SECONDS,
    Caller,
    soon,
)


@pytest.mark.parametrize(
    ("model", "stream"),
    [
        pytest.param("echo:delay=60", False, id="before the headers, unary"),
        pytest.param("echo:delay=60", True, id="before the headers, stream"),
        pytest.param("echo:first=60", False, id="before the body"),
        pytest.param("echo:first=60", True, id="before the first chunk"),
        pytest.param("echo:pace=60", True, id="between chunks"),
        pytest.param("echo:gap=60", True, id="in the gap"),
        pytest.param("echo:pieces=1000000", True, id="while writing without pause"),
        pytest.param("echo:size=20000000", True, id="in one large write"),
    ],
)
async def test_a_disconnect_of_the_caller_is_noticed(caller: Caller, model: str, stream: bool) -> None:
    async def call() -> None:
        async with caller.post(model, stream=stream) as response:
            await asyncio.Event().wait()
            response.close()

    task = asyncio.create_task(call())
    received = await asyncio.wait_for(caller.echo.arrived(), WAIT_SECONDS)
    assert not received.disconnected.is_set()
    task.cancel()
    await soon(received.disconnected)
    assert not received.finished.is_set()


async def test_stop_closes_open_responses_within_a_second() -> None:
    echo = Echo()
    await echo.start()
    async with aiohttp.ClientSession() as session:
        caller = Caller(echo, session)
        silent = asyncio.create_task(caller.unary("echo:delay=60"))
        async with caller.post("echo:pace=60", stream=True) as response:
            await echo.arrived(2)
            start = time.monotonic()
            await echo.stop()
            assert time.monotonic() - start < 1
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        with pytest.raises(aiohttp.ClientError):
            await silent
    assert not any(each.disconnected.is_set() or each.finished.is_set() for each in echo.requests)


async def test_start_and_stop() -> None:
    echo = Echo()
    with pytest.raises(RuntimeError, match="not started"):
        _ = echo.base_url
    await echo.stop()
    async with echo:
        with pytest.raises(RuntimeError, match="already started"):
            await echo.start()
        port = int(echo.base_url.split(":")[2].removesuffix("/v1"))
        with pytest.raises(OSError, match="in use"):
            await Echo(port=port).start()
    async with echo:
        assert echo.base_url.startswith("http://127.0.0.1:")
