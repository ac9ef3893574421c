"""Every HTTP client: connections that break, are cancelled, are reused or expire."""

import asyncio
import os
import socket
import struct
import sys
from typing import Any

import aiohappyeyeballs
import httpx
import pytest

from chatrpc_server.upstream.http import httpx_transport, pool
from support import Exchange, Script, http
from support.http_clients import (
    EMPTY,
    HEAD,
    OK,
    THREE,
    engines,
    idle,
    of,
    posted,
    posted_beside,
    serving,
)


@engines
async def test_data_before_a_reset_is_delivered(script: Script, name: str) -> None:
    goes_on, gone = asyncio.Event(), asyncio.Event()

    async def breaks_off(exchange: Exchange) -> None:
        await exchange.send(HEAD + b"one")
        await goes_on.wait()
        await exchange.send(b"two")
        exchange.reset()
        gone.set()

    script.respond_with(breaks_off)
    transport = of(script, name)
    response = await transport.post(b"{}", [])
    assert await response.read() == b"one"
    goes_on.set()
    await gone.wait()
    await asyncio.sleep(0.05)  # the reset must arrive while no read is waiting
    assert await response.read() == b"two"
    with pytest.raises(httpx.TransportError):
        await response.read()
    await response.aclose()
    await transport.aclose()


@engines
async def test_backpressure_stops_the_upstream(script: Script, name: str) -> None:
    size, sent = 64 << 20, 0

    async def respond(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(OK + b"content-length: %d\r\n\r\n" % size)
        while sent < size:
            await exchange.send(b"x" * (1 << 20))
            sent += 1 << 20

    script.respond_with(respond)
    transport = of(script, name)
    response = await transport.post(b"{}", [])
    before = -1
    while sent != before:  # until no more bytes move
        before = sent
        await asyncio.sleep(0.05)
    assert sent < size / 2
    read = 0
    while data := await response.read():
        assert len(data) <= 1 << 16
        read += len(data)
    assert read == size
    await response.aclose()
    assert await idle(transport) == 1
    await transport.aclose()


@engines
async def test_a_request_of_many_megabytes(script: Script, name: str) -> None:
    script.respond_with(THREE)
    transport = of(script, name)
    body = os.urandom(1 << 20) * 16
    assert (await posted(transport, body))[2:] == (b"abc", True, 1)
    assert script.exchanges[0].body == body
    await transport.aclose()


@engines
@pytest.mark.parametrize("closes", [True, False], ids=["closes", "keeps reading"])
async def test_a_response_before_the_request_is_complete(name: str, closes: bool) -> None:
    """It is accepted. The connection may hold the rest of the request, so it is not reused."""
    connections = 0

    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(b"abc", "413 Too Large"))
        if not closes:
            await asyncio.Event().wait()

    async with serving(refuses) as port, asyncio.timeout(10):
        transport = of(Script(), name, f"http://127.0.0.1:{port}")
        for number in (1, 2):
            seen = await posted(transport, bytes(64 << 20))
            assert (seen.status, seen.body, seen.idle, connections) == (413, b"abc", 0, number)
        await transport.aclose()


@engines
async def test_a_second_close_has_no_effect(script: Script, name: str) -> None:
    """The connection may carry another call by then."""
    script.respond_with(THREE)
    transport = of(script, name)
    first = await transport.post(b"{}", [])
    while await first.read():
        pass
    await first.aclose()
    assert await idle(transport) == 1
    second = await transport.post(b"{}", [])
    await first.aclose()
    assert transport.connections() == (1, 0)
    assert await second.read() == b"abc"
    await second.aclose()
    await transport.aclose()


@engines
async def test_an_early_close_of_a_response_closes_the_connection(script: Script, name: str) -> None:
    script.respond_with(HEAD + b"abc")
    transport = of(script, name)
    response = await transport.post(b"{}", [])
    await response.aclose()
    assert await idle(transport) == 0
    await transport.aclose()


async def test_a_body_that_ends_because_we_close_is_incomplete(script: Script) -> None:
    """Although only the end of the connection marks its end."""

    async def respond(exchange: Exchange) -> None:
        await exchange.send(OK + b"\r\nabc")
        await exchange.closed_by_peer()

    script.respond_with(respond)
    transport = of(script, "builtin")
    response = await transport.post(b"{}", [])
    assert await response.read() == b"abc"
    await transport.aclose()
    with pytest.raises(httpx.ReadError):
        await response.read()
    await response.aclose()
    assert transport.connections() == (0, 0)


@engines
async def test_a_cancel_at_any_time_leaves_nothing_open(any_script: tuple[Script, dict[str, Any]], name: str) -> None:
    """Each cancel is one turn of the loop later: while connecting, after it, while sending, while waiting.

    The next call gets the descriptor of the closed socket at once, so the loop must no longer watch that descriptor.
    """
    script, settings = any_script
    script.respond_with(Exchange.closed_by_peer)
    transport = of(script, name, **settings)
    for turns in range(60):
        sending = asyncio.create_task(transport.post(b"{}", []))
        for _ in range(turns):
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait({sending})
        assert sending.cancelled()
        following = asyncio.create_task(transport.post(b"{}", []))
        await asyncio.wait({following}, timeout=0.002)
        following.cancel()
        await asyncio.wait({following})
        assert following.cancelled()
    assert await idle(transport) == 0
    await transport.aclose()


async def test_a_connection_that_is_lost_before_its_first_use(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def loses(*args: Any, **options: Any) -> Any:
        transport, connection = await connect(*args, **options)
        transport.abort()
        await asyncio.sleep(0.01)  # uvloop may report it as late as that
        return transport, connection

    monkeypatch.setattr(loop, "create_connection", loses)
    transport = of(script, "builtin")
    async with asyncio.timeout(5):
        with pytest.raises(httpx.ConnectError):
            await transport.post(b"{}", [])
        assert transport.connections() == (0, 0)
        await transport.aclose()


@engines
@pytest.mark.parametrize("resets", [False, True], ids=["closes", "resets"])
async def test_an_upstream_that_closes_each_connection_at_once(name: str, resets: bool) -> None:
    async def ends(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if resets:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async with serving(ends) as port:
        transport = of(Script(), name, f"http://127.0.0.1:{port}")
        for _ in range(20):
            with pytest.raises(httpx.TransportError):
                await transport.post(b"{}", [])
        assert await idle(transport) == 0
        await transport.aclose()


# Idle connections of the pool.


@engines
async def test_a_connection_rests_after_an_exchange(
    any_script: tuple[Script, dict[str, Any]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this time a second response can arrive that the upstream sends by mistake."""
    for module in (pool, httpx_transport):
        monkeypatch.setattr(module, "REST_SECONDS", 3600.0)
    script, settings = any_script
    script.respond_with(THREE)
    transport = of(script, name, **settings)
    for number in (1, 2):
        await posted_beside(transport)
        for _ in range(100):
            await asyncio.sleep(0)
        assert (transport.connections(), script.connections) == ((number, 0), number)
    await transport.aclose()
    assert transport.connections() == (0, 0)


@engines
async def test_a_byte_in_the_socket_of_an_idle_connection(any_script: tuple[Script, dict[str, Any]], name: str) -> None:
    """It has arrived, but the loop has not read it."""
    script, settings = any_script
    script.respond_with(THREE)
    transport = of(script, name, **settings)
    assert (await posted(transport)).idle == 1
    script.respond_with(EMPTY)
    script.exchanges[0].writer.write(THREE)  # asyncio sends it at once
    assert (await posted(transport)).body == b""
    assert script.connections == 2
    await transport.aclose()


@engines
@pytest.mark.parametrize("resets", [False, True], ids=["closes", "resets"])
async def test_dead_connections_are_replaced(script: Script, name: str, resets: bool) -> None:
    """Each connection ends with its second request. A new one gets that request, for any number of dead ones."""
    known = set()

    async def respond_once(exchange: Exchange) -> None:
        if exchange.writer not in known:
            known.add(exchange.writer)
            await exchange.send(THREE)
        elif resets:
            exchange.reset()
        else:
            exchange.writer.close()

    script.respond_with(respond_once)
    transport = of(script, name)
    await asyncio.gather(*(posted_beside(transport) for _ in range(10)))
    assert (await idle(transport), script.connections) == (10, 10)
    for number in range(1, 6):
        assert (await posted(transport)).body == b"abc"
        assert len(script.exchanges) == 10 + 2 * number
    await transport.aclose()


@engines
@pytest.mark.parametrize("beginning", [b"", b"H"], ids=["no byte", "a byte"])
async def test_a_failure_that_is_not_of_a_dead_connection(script: Script, name: str, beginning: bytes) -> None:
    """A new connection that fails is not replaced. Neither is one with a part of a response."""

    async def fail(exchange: Exchange) -> None:
        await exchange.send(beginning)
        exchange.reset()

    script.respond_with(THREE, fail)
    transport = of(script, name)
    assert (await posted(transport)).idle == 1
    with pytest.raises(httpx.TransportError):
        await transport.post(b"{}", [])
    assert len(script.exchanges) == (2 if beginning else 3)
    with pytest.raises(httpx.TransportError):
        await transport.post(b"{}", [])
    assert len(script.exchanges) == (3 if beginning else 4)
    await transport.aclose()


@engines
@pytest.mark.parametrize("waits", [False, True], ids=["early", "late"])
async def test_a_close_long_after_the_request(
    script: Script, name: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upstream has worked on the request by then, so that a second one would cost again."""
    for module in (pool, httpx_transport):
        monkeypatch.setattr(module, "STALE_SECONDS", 0.0 if waits else 30.0)

    async def fail(exchange: Exchange) -> None:
        exchange.reset()

    script.respond_with(THREE, fail, THREE)
    transport = of(script, name)
    assert (await posted(transport)).idle == 1
    if waits:
        with pytest.raises(httpx.TransportError):
            await transport.post(b"{}", [])
    else:
        assert (await posted(transport)).body == b"abc"
    await transport.aclose()


@engines
@pytest.mark.parametrize("seconds", [0, 7])
async def test_keepalive(script: Script, name: str, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sockets: list[socket.socket] = []
    connecting = aiohappyeyeballs.start_connection

    async def start_connection(*args: Any, **options: Any) -> socket.socket:
        sockets.append(await connecting(*args, **options))
        return sockets[0]

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
    script.respond_with(THREE)
    transport = of(script, name, tcp_keepalive_seconds=seconds)
    await posted(transport)
    (connected,) = sockets
    assert bool(connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == bool(seconds)
    if seconds and sys.platform == "linux":
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == seconds
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == seconds
    await transport.aclose()


async def test_an_idle_connection_is_reused_and_expires(
    any_script: tuple[Script, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "IDLE_SECONDS", 0.2)
    script, settings = any_script
    script.respond_with(THREE)
    transport = of(script, "builtin", **settings)
    for _ in range(5):
        assert (await posted(transport)).idle == 1
    both = await asyncio.gather(*(transport.post(b"{}", []) for _ in range(2)))
    assert (transport.connections(), script.connections) == ((2, 0), 2)
    for response in both:
        while await response.read():
            pass
        await response.aclose()
    assert await idle(transport) == 2
    async with asyncio.timeout(5):
        while transport.connections()[1]:
            await asyncio.sleep(0.001)
        while not all(exchange.reader.at_eof() for exchange in script.exchanges):
            await asyncio.sleep(0.001)
        assert (await posted(transport)).idle == 1
        assert script.connections == 3
        while transport.connections()[1]:  # the timer is set each time
            await asyncio.sleep(0.001)
    await transport.aclose()


async def test_a_connection_in_use_outlives_the_idle_ones(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE_SECONDS", 0.05)
    goes_on = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.send(THREE[:-1])
        await goes_on.wait()
        await exchange.send(b"c")

    script.respond_with(slow, THREE)
    transport = of(script, "builtin")
    response = await transport.post(b"{}", [])
    await posted_beside(transport)
    async with asyncio.timeout(5):
        while transport.connections() != (1, 0):
            await asyncio.sleep(0.001)
    goes_on.set()
    assert [await response.read(), await response.read(), await response.read()] == [b"ab", b"c", b""]
    await response.aclose()
    await transport.aclose()


@pytest.mark.parametrize("closer", ["we", "the upstream"])
async def test_a_closing_connection_is_not_reused(
    any_script: tuple[Script, dict[str, Any]], closer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle for too long or closed by its peer: it is lost some turns later, with TLS after up to half a minute."""
    monkeypatch.setattr(pool, "IDLE_SECONDS", 0.05)
    script, settings = any_script
    script.respond_with(THREE)
    transport = of(script, "builtin", **settings)
    assert isinstance(transport, pool.Pool)
    assert (await posted(transport)).idle == 1
    kept = transport._idle[0]
    if closer == "the upstream":
        script.exchanges[0].writer.close()
    async with asyncio.timeout(5):
        while not kept.transport.is_closing():
            await asyncio.sleep(0)  # so that nothing happens in between
        assert (await posted(transport)).body == b"abc"
    assert script.connections == 2
    await transport.aclose()


@engines
async def test_a_handshake_without_end(name: str) -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as port, asyncio.timeout(5):
        transport = of(Script(), name, f"https://127.0.0.1:{port}", connect_timeout_seconds=0.1)
        with pytest.raises(httpx.ConnectTimeout):
            await transport.post(b"{}", [])
        assert await idle(transport) == 0
        await transport.aclose()
