"""What every HTTP engine has to keep to, where the service as a whole cannot be made to show it each time."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import trustme

from chatrpc_server.settings import UpstreamSettings
from chatrpc_server.upstream.http import pool, transport
from support import Exchange, Script, http

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 1000\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = OK + b"content-length: 0\r\n\r\n"
engines = pytest.mark.parametrize("name", ["builtin", "httpx"])


def of(script: Script, name: str, url: str = "", **settings: Any) -> transport.Transport:
    url = url or script.base_url
    chosen = UpstreamSettings(base_url=url, http_client=name, **settings)
    return transport.transport(chosen, httpx.URL(f"{url}/x"), [("user-agent", "test")])


async def posted(transport: transport.Transport, body: bytes = b"{}") -> "Seen":
    """What comes of a request, once its connection is idle or gone."""
    answer, data, whole = await transport.post(body, []), b"", True
    try:
        while piece := await answer.read():
            data += piece
    except httpx.TransportError:
        whole = False
    await answer.aclose()
    return Seen(answer.status, dict(answer.headers), data, whole, await idle(transport))


@asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server that does what the script's does not; gives its port. Its connections end with it."""
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
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool
    idle: int


async def idle(transport: transport.Transport) -> int:
    """How many connections are kept, once none is in use."""
    async with asyncio.timeout(5):
        while transport.connections()[0]:
            await asyncio.sleep(0.001)
    return transport.connections()[1]


CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
THREE = OK + b"content-length: 3\r\n\r\nabc"
FRAMES: dict[str, tuple[bytes, bytes, bool]] = {
    # the response; its body; is the connection kept?
    "length": (THREE, b"abc", True),
    "no body": (EMPTY, b"", True),
    "chunks": (CHUNKED + b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc", True),
    "chunks with extensions": (CHUNKED + b'3;a="b"\r\nabc\r\n0;c\r\n\r\n', b"abc", True),
    "trailers": (CHUNKED + b"3\r\nabc\r\n0\r\nx-trailer: 1\r\nx-request-id: 2\r\n\r\n", b"abc", True),
    "a space after the size of a chunk": (CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n", b"abc", True),
    "a length and chunks": (
        CHUNKED.replace(b"OK\r\n", b"OK\r\ncontent-length: 9\r\n") + b"3\r\nabc\r\n0\r\n\r\n",
        b"abc",
        True,
    ),
    "lines end in LF": (THREE.replace(b"\r", b""), b"abc", True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "304": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n", b"", True),
    "no reason": (THREE.replace(b" OK", b""), b"abc", True),
    "interim responses": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nx-request-id: 1\r\n\r\n" + THREE,
        b"abc",
        True,
    ),
    "an offer to upgrade": (THREE.replace(b"OK\r\n", b"OK\r\nupgrade: h2c\r\nconnection: upgrade\r\n"), b"abc", True),
    "connection: close": (THREE.replace(b"OK\r\n", b"OK\r\nconnection: close\r\n"), b"abc", False),
    "HTTP/1.0": (THREE.replace(b"1.1", b"1.0"), b"abc", False),
}


@engines
@pytest.mark.parametrize("step", [1, 1 << 20], ids=["bytewise", "at once"])
@pytest.mark.parametrize(("response", "body", "kept"), FRAMES.values(), ids=FRAMES)
async def test_frame(script: Script, name: str, response: bytes, body: bytes, kept: bool, step: int) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(*(response[start : start + step] for start in range(0, len(response), step)))

    script.answers(answer)
    transport = of(script, name)
    seen = await posted(transport)
    assert (seen.body, seen.whole, seen.idle) == (body, True, int(kept))
    assert "x-request-id" not in seen.headers, "of a trailer, or of an interim response"
    assert await posted(transport) == seen
    assert script.connections == (1 if kept else 2)
    await transport.aclose()


CUT: dict[str, tuple[bytes, bytes | None, bool]] = {
    # what comes before the connection is closed; the body if there is an answer; is that whole?
    "nothing": (b"", None, False),
    "in the head": (OK + b"content-le", None, False),
    "after an interim response": (b"HTTP/1.1 100 Continue\r\n\r\n", None, False),
    "in the body": (THREE[:-1], b"ab", False),
    "in a chunk": (CHUNKED + b"3\r\nab", b"ab", False),
    "before the last chunk": (CHUNKED + b"3\r\nabc\r\n", b"abc", False),
    "in the trailers": (CHUNKED + b"3\r\nabc\r\n0\r\nx: y\r\n", b"abc", False),
    "no length": (OK + b"\r\nabc", b"abc", True),
    "no length, no body": (OK + b"\r\n", b"", True),
    "HTTP/1.0, no length": (b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc", True),
    "whole": (THREE, b"abc", True),
}


@engines
@pytest.mark.parametrize(("response", "body", "whole"), CUT.values(), ids=CUT)
async def test_the_connection_ends(script: Script, name: str, response: bytes, body: bytes | None, whole: bool) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(response)
        exchange.writer.close()

    script.answers(answer)
    transport = of(script, name)
    if body is None:
        with pytest.raises(httpx.RemoteProtocolError):
            await transport.post(b"{}", [])
        assert await idle(transport) == 0
    else:
        seen = await posted(transport)
        assert (seen.body, seen.whole) == (body, whole)
        async with asyncio.timeout(5):
            while transport.connections() != (0, 0):
                await asyncio.sleep(0.001)
                if name == "httpx":  # sees it only when it looks for one
                    break
    await transport.aclose()


NO_HTTP: dict[str, bytes] = {
    "another protocol": b"ICY 200 OK\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "two lengths": OK + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    "a length that is none": OK + b"content-length: 3x\r\n\r\nabc",
    "a negative length": OK + b"content-length: -3\r\n\r\nabc",
    "a space in a header's name": OK + b"x y: 1\r\n\r\n",
    "a head without end": OK + b"x: y\r\n" * 50_000,
    "a header without end": OK + b"x: " + b"y" * 300_000,
    "interim responses without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 12_000,
}


@pytest.mark.parametrize(
    ("name", "response"),
    [
        pytest.param(name, response, id=f"{case}-{name}")
        for case, response in NO_HTTP.items()
        for name in ("builtin", "httpx")
        if (case, name) != ("interim responses without end", "httpx")  # it bounds each by itself
    ],
)
async def test_no_http(script: Script, name: str, response: bytes) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(response)
        await exchange.closed_by_peer()

    script.answers(answer)
    transport = of(script, name)
    async with asyncio.timeout(5):
        with pytest.raises(httpx.RemoteProtocolError):
            await transport.post(b"{}", [])
    assert await idle(transport) == 0
    await transport.aclose()


@engines
async def test_what_arrived_before_the_framing_broke_is_delivered(script: Script, name: str) -> None:
    script.answers(CHUNKED + b"3\r\nabc\r\nxyz\r\n")
    transport = of(script, name)
    assert (await posted(transport))[2:] == (b"abc", False, 0)
    await transport.aclose()


BEHIND: dict[str, bytes] = {
    "more than the length": b"def",
    "a second response": b"HTTP/1.1 401 Unauthorized\r\nx-request-id: 1\r\ncontent-length: 3\r\n\r\nxyz",
    "the head of a second one": b"HTTP/1.1 401 Unauthorized\r\n",
}


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("more", BEHIND.values(), ids=BEHIND)
async def test_nothing_behind_a_response_is_taken_for_one(script: Script, more: bytes, at_once: bool) -> None:
    """httpcore's next request would have it as its answer."""
    goes_on = asyncio.Event()

    async def says_more(exchange: Exchange) -> None:
        await exchange.send(THREE + more if at_once else THREE)
        if not at_once:
            await goes_on.wait()
            await exchange.send(more)
        await exchange.closed_by_peer()

    script.answers(says_more, EMPTY)
    transport = of(script, "builtin")
    answer = await transport.post(b"{}", [])
    assert (answer.status, "x-request-id" in answer.headers) == (200, False)
    assert [await answer.read(), await answer.read()] == [b"abc", b""]
    await answer.aclose()
    if not at_once:
        assert transport.connections() == (0, 1)
        goes_on.set()
        async with asyncio.timeout(5):
            while transport.connections()[1]:
                await asyncio.sleep(0.001)
    assert (await posted(transport)).body == b""
    assert script.connections == 2
    await transport.aclose()


async def test_trailers_without_end_are_not_kept(script: Script) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(CHUNKED + b"3\r\nabc\r\n0\r\nx: ")
        while True:
            await exchange.send(b"y" * 10_000)

    script.answers(answer)
    transport = of(script, "builtin")
    async with asyncio.timeout(5):
        assert (await posted(transport))[2:] == (b"abc", False, 0)
    await transport.aclose()


@engines
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


@engines
async def test_a_body_is_read_no_faster_than_it_is_taken(script: Script, name: str) -> None:
    size, sent = 64 << 20, 0

    async def answer(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(OK + b"content-length: %d\r\n\r\n" % size)
        while sent < size:
            await exchange.send(b"x" * (1 << 20))
            sent += 1 << 20

    script.answers(answer)
    transport = of(script, name)
    answer_ = await transport.post(b"{}", [])
    before = -1
    while sent != before:  # until nothing moves any more
        before = sent
        await asyncio.sleep(0.05)
    assert sent < size / 2
    read = 0
    while data := await answer_.read():
        assert len(data) <= 1 << 16
        read += len(data)
    assert read == size
    await answer_.aclose()
    assert await idle(transport) == 1
    await transport.aclose()


@engines
async def test_a_request_of_many_megabytes(script: Script, name: str) -> None:
    script.answers(THREE)
    transport = of(script, name)
    body = os.urandom(1 << 20) * 16
    assert (await posted(transport, body))[2:] == (b"abc", True, 1)
    assert script.exchanges[0].body == body
    await transport.aclose()


@pytest.mark.parametrize("closes", [True, False], ids=["closes", "keeps on reading"])
async def test_an_answer_before_all_of_the_request_was_sent(closes: bool) -> None:
    """It counts; the connection may be full of the rest of the request, so no other goes over it."""
    connections = 0

    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(b"abc", "413 Too Large"))
        if not closes:
            await asyncio.Event().wait()

    async with serving(refuses) as port, asyncio.timeout(10):
        transport = of(Script(), "builtin", f"http://127.0.0.1:{port}")
        for number in (1, 2):
            seen = await posted(transport, bytes(64 << 20))
            assert (seen.status, seen.body, seen.idle, connections) == (413, b"abc", 0, number)
        await transport.aclose()


@engines
async def test_closing_twice_is_closing_once(script: Script, name: str) -> None:
    """Meanwhile the connection may carry another call."""
    script.answers(THREE)
    transport = of(script, name)
    first = await transport.post(b"{}", [])
    while await first.read():
        pass
    await first.aclose()
    second = await transport.post(b"{}", [])
    await first.aclose()
    assert transport.connections() == (1, 0)
    assert await second.read() == b"abc"
    await second.aclose()
    await transport.aclose()


@engines
async def test_an_answer_that_is_not_wanted_to_its_end_ends_the_connection(script: Script, name: str) -> None:
    script.answers(HEAD + b"abc")
    transport = of(script, name)
    answer = await transport.post(b"{}", [])
    await answer.aclose()
    assert await idle(transport) == 0
    await transport.aclose()


async def test_a_body_that_ends_because_we_close_is_not_whole(script: Script) -> None:
    """Though only the end of the connection says where it ends."""

    async def answer(exchange: Exchange) -> None:
        await exchange.send(OK + b"\r\nabc")
        await exchange.closed_by_peer()

    script.answers(answer)
    transport = of(script, "builtin")
    answer_ = await transport.post(b"{}", [])
    assert await answer_.read() == b"abc"
    await transport.aclose()
    with pytest.raises(httpx.ReadError):
        await answer_.read()
    await answer_.aclose()
    assert transport.connections() == (0, 0)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=["plain", "TLS"])
async def any_script(
    request: pytest.FixtureRequest, authority: trustme.CA, tmp_path: Path
) -> AsyncIterator[tuple[Script, dict[str, Any]]]:
    """A scripted upstream with and without TLS, and the settings that go with it."""
    if request.param == "plain":
        async with Script() as script:
            yield script, {}
    else:
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        async with Script(authority.issue_cert("localhost")) as script:
            yield script, {"ca_file": tmp_path / "ca.pem"}


@engines
async def test_whenever_it_is_cancelled_nothing_stays_open(
    any_script: tuple[Script, dict[str, Any]], name: str
) -> None:
    """One turn of the loop later each time: while it connects, as it has, while it sends, while it waits.

    A next call at once gets the number of the socket that was given up: nobody must still listen on it.
    """
    script, settings = any_script
    script.answers(Exchange.closed_by_peer)
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


async def test_a_connection_that_is_lost_before_it_is_used(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def loses(*args: Any, **options: Any) -> Any:
        transport, connection = await connect(*args, **options)
        transport.abort()
        await asyncio.sleep(0.01)  # uvloop may tell of it as late as that
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
async def test_an_upstream_that_ends_each_connection_at_once(name: str, resets: bool) -> None:
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


# What the pool does with connections that nobody uses.


async def test_an_idle_connection_is_used_again_and_ends_in_time(
    any_script: tuple[Script, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_IDLE_SECONDS", 0.2)
    script, settings = any_script
    script.answers(THREE)
    transport = of(script, "builtin", **settings)
    for _ in range(5):
        assert (await posted(transport)).idle == 1
    both = await asyncio.gather(*(transport.post(b"{}", []) for _ in range(2)))
    assert (transport.connections(), script.connections) == ((2, 0), 2)
    for answer in both:
        while await answer.read():
            pass
        await answer.aclose()
    assert transport.connections() == (0, 2)
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
    monkeypatch.setattr(pool, "_IDLE_SECONDS", 0.05)
    goes_on = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.send(THREE[:-1])
        await goes_on.wait()
        await exchange.send(b"c")

    script.answers(slow, THREE)
    transport = of(script, "builtin")
    answer = await transport.post(b"{}", [])
    await posted_beside(transport)
    async with asyncio.timeout(5):
        while transport.connections() != (1, 0):
            await asyncio.sleep(0.001)
    goes_on.set()
    assert [await answer.read(), await answer.read(), await answer.read()] == [b"ab", b"c", b""]
    await answer.aclose()
    await transport.aclose()


async def posted_beside(transport: transport.Transport) -> None:
    """A whole exchange while others are under way."""
    answer = await transport.post(b"{}", [])
    while await answer.read():
        pass
    await answer.aclose()


@pytest.mark.parametrize("who", ["we", "the upstream"])
async def test_a_connection_that_is_just_being_ended_is_not_used(
    any_script: tuple[Script, dict[str, Any]], who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle for too long, or closed by its peer: it is lost some turns later, with TLS up to half a minute."""
    monkeypatch.setattr(pool, "_IDLE_SECONDS", 0.05)
    script, settings = any_script
    script.answers(THREE)
    transport = of(script, "builtin", **settings)
    assert isinstance(transport, pool.Pool)
    assert (await posted(transport)).idle == 1
    kept = transport._idle[0]
    if who == "the upstream":
        script.exchanges[0].writer.close()
    async with asyncio.timeout(5):
        while not kept.transport.is_closing():
            await asyncio.sleep(0)  # so that nothing comes between
        assert (await posted(transport)).body == b"abc"
    assert script.connections == 2
    await transport.aclose()


# Proxies. What has no TLS goes to a proxy as it is: tests/rpc/test_metadata.py.


class Proxy:
    """Answers CONNECT as told, and is the tunnel then: to the one port that it knows."""

    def __init__(self, response: bytes | None, port: int = 0) -> None:
        self.heads: list[bytes] = []
        self.connections = 0
        self._response, self._port = response, port

    async def __aenter__(self) -> "Proxy":
        self._serving = serving(self._connected)
        self.url = f"http://127.0.0.1:{await self._serving.__aenter__()}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._serving.__aexit__(None, None, None)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            if self._response is not None:
                writer.write(self._response)
            if self._port and self._response:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
                back = asyncio.create_task(self._carry(far_reader, writer))
                await self._carry(reader, far_writer)
                await asyncio.wait({back})
            await reader.read()
        finally:
            self.connections -= 1

    @staticmethod
    async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        finally:
            writer.close()


async def gone(proxy: Proxy) -> None:
    async with asyncio.timeout(5):
        while proxy.connections:
            await asyncio.sleep(0.001)


ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@engines
@pytest.mark.parametrize("established", [ESTABLISHED, b"HTTP/1.1 201 x\r\n\r\n"], ids=["200", "201"])
async def test_a_tunnel(authority: trustme.CA, tmp_path: Path, name: str, established: bytes) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with Script(authority.issue_cert("localhost")) as script:
        port = int(script.base_url.split(":")[2].partition("/")[0])
        async with Proxy(established, port) as proxy:
            script.answers(THREE)
            transport = of(script, name, ca_file=tmp_path / "ca.pem", proxy=proxy.url)
            for _ in range(2):
                assert (await posted(transport))[2:] == (b"abc", True, 1)
            assert len(proxy.heads) == 1
            assert proxy.heads[0].startswith(b"CONNECT localhost:%d HTTP/1.1\r\n" % port)
            assert script.exchanges[0].head.startswith(b"POST /v1/x HTTP/1.1\r\n")
            await transport.aclose()
            await gone(proxy)


@pytest.mark.parametrize(
    ("host", "named"), [("[::1]:8443", "[::1]:8443"), ("xn--bcher-kva.example", "xn--bcher-kva.example:443")]
)
async def test_how_a_tunnel_is_asked_for(host: str, named: str) -> None:
    async with Proxy(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n") as proxy:
        transport = of(Script(), "builtin", f"https://{host}", proxy=proxy.url)
        with pytest.raises(httpx.ProxyError, match="403"):
            await transport.post(b"{}", [])
        assert proxy.heads == [f"CONNECT {named} HTTP/1.1\r\nhost: {named}\r\n\r\n".encode()]
        await transport.aclose()


NO_TUNNEL: dict[str, tuple[bytes | None, bool, type[Exception]]] = {
    # what the proxy answers; is there anything behind it, which is no TLS?
    "refused": (b"HTTP/1.1 407 x\r\ncontent-length: 3\r\n\r\nabc", False, httpx.ProxyError),
    "no TLS behind it": (ESTABLISHED, True, httpx.ConnectError),
    "no HTTP": (b"\x05\x00", False, httpx.RemoteProtocolError),
    "silent": (None, False, httpx.ConnectTimeout),
    "silent behind it": (ESTABLISHED, False, httpx.ConnectTimeout),
}


@pytest.mark.parametrize(("response", "behind", "error"), NO_TUNNEL.values(), ids=NO_TUNNEL)
async def test_no_tunnel(response: bytes | None, behind: bool, error: type[Exception]) -> None:
    """httpcore lets a proxy be silent for as long as the call lasts."""

    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example.com\r\n")

    async with serving(plain) as port, Proxy(response, behind and port) as proxy, asyncio.timeout(5):
        settings = {"proxy": proxy.url, "connect_timeout_seconds": 0.1 if error is httpx.ConnectTimeout else 5}
        transport = of(Script(), "builtin", "https://localhost", **settings)
        with pytest.raises(error):
            await transport.post(b"{}", [])
        assert await idle(transport) == 0
        await gone(proxy)
        await transport.aclose()


async def test_whenever_a_tunnel_is_cancelled_nothing_stays_open(authority: trustme.CA, tmp_path: Path) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with Script(authority.issue_cert("localhost")) as script:
        script.answers(Exchange.closed_by_peer)
        async with Proxy(ESTABLISHED, int(script.base_url.split(":")[2].partition("/")[0])) as proxy:
            transport = of(script, "builtin", ca_file=tmp_path / "ca.pem", proxy=proxy.url)
            for turns in range(60):
                sending = asyncio.create_task(transport.post(b"{}", []))
                for _ in range(turns):
                    await asyncio.sleep(0)
                sending.cancel()
                await asyncio.wait({sending})
                assert sending.cancelled()
            assert await idle(transport) == 0
            await transport.aclose()
            await gone(proxy)


@engines
async def test_a_handshake_that_never_ends(name: str) -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as port, asyncio.timeout(5):
        transport = of(Script(), name, f"https://127.0.0.1:{port}", connect_timeout_seconds=0.1)
        with pytest.raises(httpx.ConnectTimeout):
            await transport.post(b"{}", [])
        assert await idle(transport) == 0
        await transport.aclose()


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nx: y", "a\rx: y"])
async def test_a_header_is_one_line(script: Script, value: str) -> None:
    transport = of(script, "builtin")
    with pytest.raises(ValueError, match="more than one line"):
        await transport.post(b"{}", [("x-request-id", value)])
    await transport.aclose()
