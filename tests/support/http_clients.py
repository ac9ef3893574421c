"""The HTTP clients of the upstream, driven directly, and servers that break the protocol."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import httpx
import pytest

from chatrpc_server.settings import UpstreamSettings
from chatrpc_server.upstream.http import transport
from support import Script

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 1000\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = OK + b"content-length: 0\r\n\r\n"
engines = pytest.mark.parametrize("name", ["builtin", "httpx"])


def of(script: Script, name: str, url: str = "", **settings: Any) -> transport.Transport:
    url = url or script.base_url
    chosen = UpstreamSettings(base_url=url, http_client=name, **settings)
    return transport.create(chosen, httpx.URL(f"{url}/x"), [("user-agent", "test")])


async def posted(transport: transport.Transport, body: bytes = b"{}") -> "Seen":
    """Send a request; return its outcome after its connection is idle or closed."""
    response, data, whole = await transport.post(body, []), b"", True
    try:
        while piece := await response.read():
            data += piece
    except httpx.TransportError:
        whole = False
    await response.aclose()
    return Seen(response.status, dict(response.headers), data, whole, await idle(transport))


@asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server with its own handler; yields its port. Its connections close with it."""
    handling: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handling.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await handle(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for task in handling:
        task.cancel()
    if handling:
        await asyncio.wait(handling)


class Seen(NamedTuple):
    """The outcome of a request."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool
    idle: int


async def idle(transport: transport.Transport) -> int:
    """Return the number of idle connections after none is in use."""
    async with asyncio.timeout(5):
        while transport.connections()[0]:
            await asyncio.sleep(0.001)
    return transport.connections()[1]


CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
THREE = OK + b"content-length: 3\r\n\r\nabc"


async def posted_beside(transport: transport.Transport) -> None:
    """Make a whole exchange while others are in progress."""
    response = await transport.post(b"{}", [])
    while await response.read():
        pass
    await response.aclose()
