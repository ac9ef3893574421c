"""Upstreams whose status line, headers, interim responses or framing never end."""

import asyncio

import pytest

from support import Exchange, Script, failure, request, service

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
ENDLESS = {
    "status line": (b"HTTP/1.1 200 ", b"x" * 16384),
    "header": (HEAD + b"x-a: ", b"x" * 16384),
    "headers": (HEAD, b"x-a: b\r\n" * 2000),
    "interim responses": (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 500),
    "size of a chunk": (CHUNKED, b"0" * 16384),
    "extension of a chunk": (CHUNKED + b"1;a=", b"x" * 16384),
    "trailers": (CHUNKED + b"0\r\n", b"x-a: b\r\n" * 2000),
}
"""The first bytes, and those that repeat."""


@pytest.mark.parametrize("http_client", ["builtin", "httpx"])
@pytest.mark.parametrize("name", ENDLESS)
async def test_it_is_refused_after_some_bytes(script: Script, name: str, http_client: str) -> None:
    first, repeated = ENDLESS[name]
    sent: list[int] = []

    async def respond(exchange: Exchange) -> None:
        await exchange.send(first)
        while True:
            await exchange.send(repeated)
            sent.append(len(repeated))
            await asyncio.sleep(0)

    script.respond_with(respond)
    async with service(script.base_url, upstream={"http_client": http_client}) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request(), timeout=60))
        assert failed.reason == "UPSTREAM_INVALID_RESPONSE"
        assert "violates HTTP/1.1" in failed.message
        assert len(script.exchanges) == 1
    assert sum(sent) < 8 << 20, "the service does not read on"
