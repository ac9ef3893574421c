"""Every HTTP client: the framing of responses, valid and broken."""

import asyncio

import httpx
import pytest

from chatrpc_server.upstream.http.errors import InvalidHttp
from support import Exchange, Script
from support.http_clients import (
    CHUNKED,
    EMPTY,
    OK,
    THREE,
    engines,
    idle,
    of,
    posted,
)

FRAMES: dict[str, tuple[bytes, bytes, bool]] = {
    # the response; its body; whether the connection is kept
    "length": (THREE, b"abc", True),
    "no body": (EMPTY, b"", True),
    "chunks": (CHUNKED + b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc", True),
    "chunks with extensions": (CHUNKED + b'3;a="b"\r\nabc\r\n0;c\r\n\r\n', b"abc", True),
    "trailers": (CHUNKED + b"3\r\nabc\r\n0\r\nx-trailer: 1\r\nx-request-id: 2\r\n\r\n", b"abc", True),
    "a space after the size of a chunk": (CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n", b"abc", True),
    "a length and chunks": (
        CHUNKED.replace(b"OK\r\n", b"OK\r\ncontent-length: 9\r\n") + b"3\r\nabc\r\n0\r\n\r\n",
        b"abc",
        False,
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
    "equal lengths": (OK + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc", b"abc", True),
    "equal lengths in a list": (OK + b"Content-Length: 3, 3\r\ncontent-length: 3\r\n\r\nabc", b"abc", True),
    "a folded header": (THREE.replace(b"OK\r\n", b"OK\r\nx: a\r\n b\r\n\tc\r\n"), b"abc", True),
    "a folded transfer-encoding": (CHUNKED.replace(b": ", b":\r\n ") + b"3\r\nabc\r\n0\r\n\r\n", b"abc", True),
    "control characters": (THREE.replace(b"OK\r\n", b"OK\r\nx: \x01a\x02\x1bb\x7f\r\n"), b"abc", True),
    "latin-1": (THREE.replace(b"OK\r\n", b"OK\r\nx: a\xe9\xffb\r\n"), b"abc", True),
    "oddities of many kinds": (
        b"HTTP/1.1 103 Early Hints\nx-request-id: 1\x01\n\n" + OK + b"x: \x01\r\n b\r\ncontent-length: 3,3\r\n\r\nabc",
        b"abc",
        True,
    ),
    "connection: close": (THREE.replace(b"OK\r\n", b"OK\r\nconnection: close\r\n"), b"abc", False),
    "HTTP/1.0": (THREE.replace(b"1.1", b"1.0"), b"abc", False),
}


@engines
@pytest.mark.parametrize("step", [1, 1 << 20], ids=["bytewise", "at once"])
@pytest.mark.parametrize(("response", "body", "kept"), FRAMES.values(), ids=FRAMES)
async def test_frame(script: Script, name: str, response: bytes, body: bytes, kept: bool, step: int) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.send(*(response[start : start + step] for start in range(0, len(response), step)))

    script.respond_with(respond)
    transport = of(script, name)
    seen = await posted(transport)
    assert (seen.body, seen.whole, seen.idle) == (body, True, int(kept))
    assert "x-request-id" not in seen.headers, "the header of a trailer or of an interim response"
    assert await posted(transport) == seen
    assert script.connections == (1 if kept else 2)
    await transport.aclose()


CUT: dict[str, tuple[bytes, bytes | None, bool]] = {
    # the bytes before the close; the body if there is a response; whether that is complete
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
async def test_a_close_at_any_point(
    script: Script, name: str, response: bytes, body: bytes | None, whole: bool
) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.send(response)
        exchange.writer.close()

    script.respond_with(respond)
    transport = of(script, name)
    if body is None:
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            await transport.post(b"{}", [])
        assert not isinstance(caught.value, InvalidHttp), "a retry can succeed"
        assert await idle(transport) == 0
    else:
        seen = await posted(transport)
        assert (seen.body, seen.whole) == (body, whole)
        async with asyncio.timeout(5):
            while transport.connections() != (0, 0):
                await asyncio.sleep(0.001)
                if name == "httpx":  # sees the close only when it looks for a connection
                    break
    await transport.aclose()


INVALID_HTTP: dict[str, bytes] = {
    "another protocol": b"ICY 200 OK\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "two lengths": OK + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    "an invalid length": OK + b"content-length: 3x\r\n\r\nabc",
    "a negative length": OK + b"content-length: -3\r\n\r\nabc",
    "two lengths in a list": OK + b"content-length: 3, 4\r\n\r\nabc",
    "an equal but invalid length": OK + b"content-length: 3x, 3x\r\n\r\nabc",
    "a folded length": OK + b"content-length: 1\r\n 2\r\n\r\nabc",
    "a control character in a length": OK + b"content-length: 3\x01\r\n\r\nabc",
    "an unknown transfer-encoding": OK + b"transfer-encoding: xchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "several transfer-encodings": OK + b"transfer-encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "identity": OK + b"transfer-encoding: identity\r\ncontent-length: 3\r\n\r\nabc",
    "chunked twice": CHUNKED.replace(b"OK\r\n", b"OK\r\ntransfer-encoding: chunked\r\n") + b"3\r\nabc\r\n0\r\n\r\n",
    "NUL in a header": OK + b"x: a\x00b\r\ncontent-length: 3\r\n\r\nabc",
    "CR in a header": OK + b"x: a\rb\r\ncontent-length: 3\r\n\r\nabc",
    "a header without a colon": OK + b"x\r\ncontent-length: 3\r\n\r\nabc",
    "a space before the colon": OK + b"content-length : 3\r\n\r\nabc",
    "a space in a header's name": OK + b"x y: 1\r\n\r\n",
    "a head without end": OK + b"x: y\r\n" * 50_000,
    "a header without end": OK + b"x: " + b"y" * 300_000,
    "interim responses without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 12_000,
}


@pytest.mark.parametrize(
    ("name", "response"),
    [
        pytest.param(name, response, id=f"{case}-{name}")
        for case, response in INVALID_HTTP.items()
        for name in ("builtin", "httpx")
        if (case, name) != ("interim responses without end", "httpx")  # it limits each one separately
    ],
)
async def test_invalid_http(script: Script, name: str, response: bytes) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.send(response)
        await exchange.closed_by_peer()

    script.respond_with(respond)
    transport = of(script, name)
    async with asyncio.timeout(5):
        with pytest.raises(InvalidHttp):
            await transport.post(b"{}", [])
    assert await idle(transport) == 0
    await transport.aclose()


@engines
async def test_data_before_broken_framing_is_delivered(script: Script, name: str) -> None:
    script.respond_with(CHUNKED + b"3\r\nabc\r\nxyz\r\n")
    transport = of(script, name)
    assert (await posted(transport))[2:] == (b"abc", False, 0)
    await transport.aclose()


BEHIND: dict[str, bytes] = {
    "more than the length": b"def",
    "a second response": b"HTTP/1.1 401 Unauthorized\r\nx-request-id: 1\r\ncontent-length: 3\r\n\r\nxyz",
    "the head of a second one": b"HTTP/1.1 401 Unauthorized\r\n",
}


@engines
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("more", BEHIND.values(), ids=BEHIND)
async def test_bytes_after_a_response_are_not_the_next_response(
    script: Script, name: str, more: bytes, at_once: bool
) -> None:
    goes_on = asyncio.Event()

    async def says_more(exchange: Exchange) -> None:
        await exchange.send(THREE + more if at_once else THREE)
        if not at_once:
            await goes_on.wait()
            await exchange.send(more)
        await exchange.closed_by_peer()

    script.respond_with(says_more, EMPTY)
    transport = of(script, name)
    response = await transport.post(b"{}", [])
    assert (response.status, "x-request-id" in response.headers) == (200, False)
    assert [await response.read(), await response.read()] == [b"abc", b""]
    await response.aclose()
    if not at_once:
        assert await idle(transport) == 1
        goes_on.set()
        async with asyncio.timeout(5):
            while name == "builtin" and transport.connections()[1]:  # httpx looks when it needs a connection
                await asyncio.sleep(0.001)
    assert (await posted(transport)).body == b""
    assert script.connections == 2
    await transport.aclose()


async def test_trailers_without_end_are_not_kept(script: Script) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.send(CHUNKED + b"3\r\nabc\r\n0\r\nx: ")
        while True:
            await exchange.send(b"y" * 10_000)

    script.respond_with(respond)
    transport = of(script, "builtin")
    async with asyncio.timeout(5):
        assert (await posted(transport))[2:] == (b"abc", False, 0)
    await transport.aclose()


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nx: y", "a\rx: y"])
async def test_a_header_is_one_line(script: Script, value: str) -> None:
    transport = of(script, "builtin")
    with pytest.raises(ValueError, match="more than one line"):
        await transport.post(b"{}", [("x-request-id", value)])
    await transport.aclose()
