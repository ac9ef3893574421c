"""An upstream that sends bytes for which no request asked: no caller receives the response of another call.

Each call has a token. The upstream returns the token of the request, and then misbehaves: it sends too much, too early
or too late. Every stray byte carries the token of its own call, marked, so that a stray response is a foreign one.
"""

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from support import Exchange, Script, Service, http, outcome, request, service, sse

CONCURRENT = 20
_STRAY = "stray of "
_SECONDS = (0.0, 0.0002, 0.0005, 0.001, 0.002)
"""Delays of stray bytes. A later stray can follow the next request, and HTTP/1.1 cannot distinguish the two."""

Misbehaviour = Callable[[Exchange, bytes, bytes], Awaitable[None]]


def _response(token: str, *, streamed: bool) -> bytes:
    piece = {"role": "assistant", "content": token}
    choice = {"index": 0, "delta" if streamed else "message": piece, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice]}).encode()
    return sse(body) if streamed else http(body)


def _chunked(response: bytes, trailers: bytes = b"") -> bytes:
    """Return the response with chunked framing."""
    head, _, body = response.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
    head = b"\r\n".join([*lines, b"transfer-encoding: chunked"])
    return head + b"\r\n\r\n%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailers)


async def _nothing(exchange: Exchange, good: bytes, stray: bytes) -> None:
    await exchange.send(good)


async def _second_at_once(exchange: Exchange, good: bytes, stray: bytes) -> None:
    await exchange.send(good + stray)


async def _second_in_its_own_segment(exchange: Exchange, good: bytes, stray: bytes) -> None:
    await exchange.send(good)
    await asyncio.sleep(random.choice(_SECONDS))  # the attack is its time
    await exchange.send(stray)


async def _second_in_two_segments(exchange: Exchange, good: bytes, stray: bytes) -> None:
    await exchange.send(good, stray[: len(stray) // 2])
    await asyncio.sleep(random.choice(_SECONDS))
    await exchange.send(stray[len(stray) // 2 :])


async def _second_divided_by_the_end_of_the_first(exchange: Exchange, good: bytes, stray: bytes) -> None:
    await exchange.send(good[:-1])
    await asyncio.sleep(random.choice(_SECONDS))
    await exchange.send(good[-1:] + stray[:9])
    await asyncio.sleep(random.choice(_SECONDS))
    await exchange.send(stray[9:])


async def _many_more(exchange: Exchange, good: bytes, stray: bytes) -> None:
    await exchange.send(good)
    await asyncio.sleep(random.choice(_SECONDS))
    for _ in range(5):
        await exchange.send(stray)


async def _interim_before_and_after(exchange: Exchange, good: bytes, stray: bytes) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    await exchange.send(interim, good)
    await asyncio.sleep(random.choice(_SECONDS))
    await exchange.send(interim, stray)


async def _more_than_the_length(exchange: Exchange, good: bytes, stray: bytes) -> None:
    await exchange.send(good + b"and more")
    await asyncio.sleep(random.choice(_SECONDS))
    await exchange.send(stray)


async def _blank_lines_and_a_second(exchange: Exchange, good: bytes, stray: bytes) -> None:
    await exchange.send(good + b"\r\n\r\n")
    await asyncio.sleep(random.choice(_SECONDS))
    await exchange.send(b"\r\n", stray)


async def _trailers(exchange: Exchange, good: bytes, stray: bytes) -> None:
    await exchange.send(_chunked(good, b"x-trailer: 1\r\ncontent-length: 7\r\n"))
    await asyncio.sleep(random.choice(_SECONDS))
    await exchange.send(_chunked(stray))


async def _chunks_after_the_last(exchange: Exchange, good: bytes, stray: bytes) -> None:
    await exchange.send(_chunked(good))
    await asyncio.sleep(random.choice(_SECONDS))
    await exchange.send(_chunked(stray).partition(b"\r\n\r\n")[2], stray)


async def _two_requests_answered(exchange: Exchange, good: bytes, stray: bytes) -> None:
    """Respond as if the request had come twice, and a third time after the connection is half closed."""
    await exchange.send(good, stray)
    exchange.writer.write(stray)
    await exchange.writer.drain()


async def _second_and_close(exchange: Exchange, good: bytes, stray: bytes) -> None:
    await exchange.send(good)
    await asyncio.sleep(random.choice(_SECONDS))
    await exchange.send(stray)
    exchange.writer.close()


async def _close(exchange: Exchange, good: bytes, stray: bytes) -> None:
    await exchange.send(good)
    await asyncio.sleep(random.choice(_SECONDS))
    exchange.writer.close()


async def _reset(exchange: Exchange, good: bytes, stray: bytes) -> None:
    await exchange.send(good)
    await asyncio.sleep(random.choice(_SECONDS))
    exchange.reset()


MISBEHAVIOURS: list[Misbehaviour] = [
    _nothing,
    _nothing,
    _second_at_once,
    _second_in_its_own_segment,
    _second_in_two_segments,
    _second_divided_by_the_end_of_the_first,
    _many_more,
    _interim_before_and_after,
    _more_than_the_length,
    _blank_lines_and_a_second,
    _trailers,
    _chunks_after_the_last,
    _two_requests_answered,
    _second_and_close,
    _close,
    _reset,
]


class Hostile(Script):
    """The upstream: each response has the token of its request, each stray one has it marked."""

    def choose(self, exchange: Exchange) -> Callable[[Exchange], Awaitable[None]]:
        """Return a random misbehaviour."""
        asked = json.loads(exchange.body)
        token, streamed = asked["messages"][0]["content"], asked.get("stream", False)
        good, stray = (_response(text, streamed=streamed) for text in (token, f"{_STRAY}{token}"))
        misbehave = random.choice(MISBEHAVIOURS)
        self.exchanges.clear()  # it must not keep thousands
        return lambda exchange: misbehave(exchange, good, stray)


async def _attack(chat: Service, calls: int) -> Counter[str]:
    """Make calls, unary and streams in turn; return the number of each outcome."""
    numbers = itertools.count()
    seen: Counter[str] = Counter()

    async def caller() -> None:
        while (number := next(numbers)) < calls:
            token = f"token-{number}"
            rpc = "CreateChatCompletionStream" if number % 2 else "CreateChatCompletion"
            ended = await outcome(getattr(chat.stub, rpc)(request(token)))
            choices = [choice for message in ended.messages for choice in message.choices]
            text = "".join((choice.delta if number % 2 else choice.message).content for choice in choices)
            seen["own" if text == token else "foreign" if text else ended.reason] += 1

    await asyncio.gather(*(caller() for _ in range(CONCURRENT)))
    return seen


async def _run(client: str, tls: bool, tmp_path: Path, calls: int) -> None:
    authority = trustme.CA()
    settings: dict[str, Any] = {"http_client": client}
    if tls:
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        settings["ca_file"] = tmp_path / "ca.pem"
    async with (
        Hostile(authority.issue_cert("localhost") if tls else None) as upstream,
        service(upstream.base_url, upstream=settings) as chat,
    ):
        seen = await _attack(chat, calls)
        assert seen == {"own": calls}
        reused = calls - upstream.connections
        assert reused > calls / 50, "hardly a connection was reused, so the test shows nothing"


clients = pytest.mark.parametrize("client", ["builtin", "httpx"])
with_tls = pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])


@clients
@with_tls
async def test_cross_talk(client: str, tls: bool, tmp_path: Path) -> None:
    await _run(client, tls, tmp_path, 250)


@pytest.mark.slow
@pytest.mark.timeout(600)
@clients
@with_tls
async def test_cross_talk_for_long(client: str, tls: bool, tmp_path: Path) -> None:
    await _run(client, tls, tmp_path, 5_000)
