"""What every HTTP engine has to keep to, where the service as a whole cannot be made to show it each time."""

import asyncio

import httpx
import pytest

from chatrpc_server.settings import UpstreamSettings
from chatrpc_server.upstream import engine
from support import Exchange, Script

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 1000\r\n\r\n"


def of(script: Script, name: str) -> engine.Transport:
    settings = UpstreamSettings(base_url=script.base_url, engine=name)
    return engine.transport(settings, httpx.URL(f"{script.base_url}/x"), [("user-agent", "test")])


@pytest.mark.parametrize("name", ["httptools", "httpcore"])
async def test_what_arrived_before_the_connection_broke_is_delivered(script: Script, name: str) -> None:
    goes_on, gone = asyncio.Event(), asyncio.Event()

    async def breaks_off(exchange: Exchange) -> None:
        await exchange.send(HEAD + b"one")
        await goes_on.wait()
        await exchange.send(b"two")
        exchange.reset()
        gone.set()

    script.answers(breaks_off)
    transport = of(script, name)
    answer = await transport.post(b"{}", [])
    assert await answer.read() == b"one"
    goes_on.set()
    await gone.wait()
    await asyncio.sleep(0.05)  # nobody reads while the end arrives: that is the case in question
    assert await answer.read() == b"two"
    with pytest.raises(httpx.TransportError):
        await answer.read()
    await answer.aclose()
    await transport.aclose()


@pytest.mark.parametrize("name", ["httptools", "httpcore"])
async def test_whenever_it_is_cancelled_nothing_stays_open(script: Script, name: str) -> None:
    """One turn of the loop later each time: while it connects, as it has, while it sends, while it waits."""
    script.answers(Exchange.closed_by_peer)
    transport = of(script, name)
    for turns in range(60):
        sending = asyncio.create_task(transport.post(b"{}", []))
        for _ in range(turns):
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait({sending})
        assert sending.cancelled()
    async with asyncio.timeout(5):
        while transport.connections()[0]:
            await asyncio.sleep(0.01)
    await transport.aclose()
