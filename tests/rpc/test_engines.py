"""What every HTTP engine has to keep to, where the service as a whole cannot be made to show it each time."""

import asyncio

import httpx
import pytest

from chatrpc_server.settings import UpstreamSettings
from chatrpc_server.upstream import engine
from support import Exchange, Script

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 1000\r\n\r\n"


@pytest.mark.parametrize("name", ["aiohttp", "httpcore"])
async def test_what_arrived_before_the_connection_broke_is_delivered(script: Script, name: str) -> None:
    goes_on, gone = asyncio.Event(), asyncio.Event()

    async def breaks_off(exchange: Exchange) -> None:
        await exchange.send(HEAD + b"one")
        await goes_on.wait()
        await exchange.send(b"two")
        exchange.reset()
        gone.set()

    script.answers(breaks_off)
    transport = engine.transport(UpstreamSettings(base_url=script.base_url, engine=name))
    response = await transport.handle_async_request(httpx.Request("POST", f"{script.base_url}/x", content=b"{}"))
    reads = aiter(response.stream)
    assert await anext(reads) == b"one"
    goes_on.set()
    await gone.wait()
    await asyncio.sleep(0.05)  # nobody reads while the end arrives: that is the case in question
    assert await anext(reads) == b"two"
    with pytest.raises(httpx.TransportError):
        await anext(reads)
    await response.stream.aclose()
    await transport.aclose()


@pytest.mark.parametrize("name", ["aiohttp", "httpcore"])
async def test_whenever_it_is_cancelled_nothing_stays_open(script: Script, name: str) -> None:
    """One turn of the loop later each time: while it connects, as it has, while it sends, while it waits."""
    script.answers(Exchange.closed_by_peer)
    transport = engine.transport(UpstreamSettings(base_url=script.base_url, engine=name))
    for turns in range(60):
        sending = asyncio.create_task(
            transport.handle_async_request(httpx.Request("POST", f"{script.base_url}/x", content=b"{}"))
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait({sending})
        assert sending.cancelled()
    async with asyncio.timeout(5):
        while transport.connections()[0]:
            await asyncio.sleep(0.01)
    await transport.aclose()
