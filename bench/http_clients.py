"""Which HTTP client should drive the outbound edge? CPU and promptness of each candidate, side by side.

    python bench/http_clients.py [--quick]

What it measures: the CPU time of this process alone, per call or per chunk, for each client in turn, each turn in a
fresh event loop. The upstream is another process on 127.0.0.1 that sends pre-built bytes.

    unary         one call after another; then 50 at once
    burst         20 streams at once, 66 chunks each, sent as fast as the upstream can
    paced         100 streams at once, 50 chunks a second each: wake-ups dominate, as with a real model
    unary, open   one more unary call while N streams are open: does the pool slow down?
    delay         paced chunks carry their send time: how late does each one arrive?

How to read it: compare only the ratios to aiohttp without httpx, in parentheses; machines differ and neighbours are
noisy. A figure is the median of its turns, `±` half the distance between the lowest and the highest. Look at the delay
first: a client that delivers few pieces, late, holds the stream back, and its cheap chunks are worth nothing. Clients
whose package is not installed are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.util
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import aiohttp
import httpx
import uvloop

from chatrpc_server.upstream.http.pool import Pool

CHUNKS_PER_BURST = 66
PACE_SECONDS = 0.020
TIMEOUT = httpx.Timeout(None, connect=5.0)  # as in the service, which has its own time limits for chunks
HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-bench", "accept-encoding": "identity"}

REQUEST = b'{"model":"m","messages":[{"role":"user","content":"' + b"q" * 240 + b'"}]}'
ANSWER = b'{"id":"c","object":"chat.completion","choices":[{"message":{"content":"' + b"a" * 520 + b'"}}]}'
EVENT = b'data: {"sent":%020d,"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"' + b"t" * 200 + b'"}}]}\n\n'
SENT = slice(EVENT.index(b"%020d"), EVENT.index(b"%020d") + 20)


# --- the upstream: a separate process --------------------------------------------------------------------------------

UNARY_RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(ANSWER),
    ANSWER,
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def framed(data: bytes) -> bytes:
    """Return one HTTP/1.1 chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


FRAMED_EVENT = framed(EVENT % 0)
STREAM_END = framed(b"data: [DONE]\n\n") + framed(b"")


class Upstream(asyncio.Protocol):
    """Serves `/unary`, `/burst`, `/paced/<chunks>` and `/open`; knows just enough HTTP for the clients."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, blank, body = self.buffer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if blank and len(body) >= length:
            self.buffer = b""
            self.answer(head.split(b" ", 2)[1])

    def answer(self, path: bytes) -> None:
        if path == b"/unary":
            self.transport.write(UNARY_RESPONSE)
            return
        self.transport.write(STREAM_HEAD)
        if path == b"/burst":
            for _ in range(CHUNKS_PER_BURST):
                self.transport.write(FRAMED_EVENT)
            self.transport.write(STREAM_END)
        elif path == b"/open":
            self.transport.write(FRAMED_EVENT)
        else:
            self.pace(int(path.rpartition(b"/")[2]), asyncio.get_running_loop().time())

    def pace(self, left: int, due: float) -> None:
        if self.transport.is_closing():
            return
        if left == 0:
            self.transport.write(STREAM_END)
            return
        self.transport.write(framed(EVENT % time.monotonic_ns()))
        due += PACE_SECONDS
        asyncio.get_running_loop().call_at(due, self.pace, left - 1, due)


async def serve_until_stdin_ends() -> None:
    """Print the port; serve until the parent exits, because the parent holds the other end of stdin."""
    loop = asyncio.get_running_loop()
    parent_left = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), parent_left.set)
    server = await loop.create_server(Upstream, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await parent_left.wait()
    server.close()


@contextlib.contextmanager
def upstream() -> Iterator[httpx.URL]:
    """Run an upstream; yield its base URL."""
    command = [sys.executable, __file__, "--upstream"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield httpx.URL(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.stdin.close()
            process.wait(timeout=10)


# --- the clients: each POSTs `REQUEST`, and must not follow, keep, decode or merge anything --------------------------


def aiohttp_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "User-Agent"),
    )


class HttpxClient:
    """An `httpx.AsyncClient` over the transport: the usual way."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self.client = httpx.AsyncClient(transport=transport, timeout=TIMEOUT, headers=HEADERS, trust_env=False)

    async def unary(self, url: httpx.URL) -> bytes:
        return (await self.client.post(url, content=REQUEST)).content

    async def stream(self, url: httpx.URL) -> AsyncGenerator[bytes, None]:
        async with self.client.stream("POST", url, content=REQUEST) as response:
            async for data in response.aiter_raw():
                yield data

    async def aclose(self) -> None:
        await self.client.aclose()


class HttpxTransport:
    """httpx's transport, called directly with request and response, without the client around them."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self.transport = transport
        self.headers = httpx.Headers(HEADERS)
        self.extensions = {"timeout": TIMEOUT.as_dict()}

    @contextlib.asynccontextmanager
    async def body(self, url: httpx.URL) -> AsyncIterator[httpx.AsyncByteStream]:
        request = httpx.Request("POST", url, content=REQUEST, headers=self.headers, extensions=self.extensions)
        response = await self.transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        try:
            yield response.stream
        finally:
            await response.aclose()

    async def unary(self, url: httpx.URL) -> bytes:
        async with self.body(url) as body:
            return b"".join([data async for data in body])

    async def stream(self, url: httpx.URL) -> AsyncGenerator[bytes, None]:
        async with self.body(url) as body:
            async for data in body:
                yield data

    async def aclose(self) -> None:
        await self.transport.aclose()


class AiohttpClient:
    """aiohttp without any httpx object: the yardstick."""

    def __init__(self) -> None:
        self.session = aiohttp_session()
        self.timeout = aiohttp.ClientTimeout(connect=TIMEOUT.connect)

    def post(self, url: httpx.URL) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self.session.post(str(url), data=REQUEST, headers=HEADERS, timeout=self.timeout, allow_redirects=False)

    async def unary(self, url: httpx.URL) -> bytes:
        async with self.post(url) as response:
            return await response.read()

    async def stream(self, url: httpx.URL) -> AsyncGenerator[bytes, None]:
        async with self.post(url) as response:
            while data := await response.content.readany():
                yield data

    async def aclose(self) -> None:
        await self.session.close()


class BuiltinClient:
    """The service's own client: httptools over its own connections."""

    def __init__(self) -> None:
        self.pools: dict[httpx.URL, Pool] = {}

    def pool(self, url: httpx.URL) -> Pool:
        if url not in self.pools:
            self.pools[url] = Pool(url, list(HEADERS.items()), None, None, 5.0)
        return self.pools[url]

    async def unary(self, url: httpx.URL) -> bytes:
        return b"".join([data async for data in self.stream(url)])

    async def stream(self, url: httpx.URL) -> AsyncGenerator[bytes, None]:
        answer = await self.pool(url).post(REQUEST, [])
        try:
            while data := await answer.read():
                yield data
        finally:
            await answer.aclose()

    async def aclose(self) -> None:
        for pool in self.pools.values():
            await pool.aclose()


class PyreqwestClient:
    """pyreqwest; it streams only with a read buffer of 0, which its httpx transport cannot set."""

    def __init__(self) -> None:
        builder = importlib.import_module("pyreqwest.client").ClientBuilder()
        self.client = builder.no_proxy().gzip(False).connect_timeout(timedelta(seconds=5)).build()

    async def unary(self, url: httpx.URL) -> bytes:
        response = await self.client.post(str(url)).headers(HEADERS).body_bytes(REQUEST).build().send()
        return bytes(await response.bytes())

    async def stream(self, url: httpx.URL) -> AsyncGenerator[bytes, None]:
        builder = self.client.post(str(url)).headers(HEADERS).body_bytes(REQUEST)
        async with builder.streamed_read_buffer_limit(0).build_streamed() as response:
            while (data := await response.body_reader.read_chunk()) is not None:
                yield bytes(data)

    async def aclose(self) -> None:
        await self.client.close()


def httpcore_transport() -> httpx.AsyncHTTPTransport:
    return httpx.AsyncHTTPTransport(trust_env=False, limits=httpx.Limits(max_connections=None))


def httpx_aiohttp_transport() -> httpx.AsyncBaseTransport:
    # Its own session would allow at most 100 connections despite "unlimited" limits, and keep cookies.
    transport: httpx.AsyncBaseTransport = importlib.import_module("httpx_aiohttp").AiohttpTransport(
        client=aiohttp_session
    )
    return transport


Client = HttpxClient | HttpxTransport | AiohttpClient | BuiltinClient | PyreqwestClient
YARDSTICK = "(e) aiohttp, no httpx"
CANDIDATES: list[tuple[str, str, Callable[[], Client]]] = [
    ("(a) httpx client, httpcore", "httpx", lambda: HttpxClient(httpcore_transport())),
    ("(b) httpcore transport", "httpx", lambda: HttpxTransport(httpcore_transport())),
    ("(c) httpx client, httpx-aiohttp", "httpx_aiohttp", lambda: HttpxClient(httpx_aiohttp_transport())),
    ("(d) httpx-aiohttp transport", "httpx_aiohttp", lambda: HttpxTransport(httpx_aiohttp_transport())),
    (YARDSTICK, "aiohttp", AiohttpClient),
    ("(f) builtin, httptools", "httptools", BuiltinClient),
    ("(g) pyreqwest, no httpx", "pyreqwest", PyreqwestClient),
]
CLIENTS = {name: build for name, module, build in CANDIDATES if importlib.util.find_spec(module)}


# --- the workloads ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """The amount of each load; it bounds the duration of the run."""

    turns_by_loop: dict[str, int]
    unary_calls: int
    burst_rounds: int
    paced_seconds: float
    open_streams: tuple[int, ...]
    calls_while_open: int


FULL = Sizes({"uvloop": 5, "asyncio": 2}, 500, 5, 1.5, (500,), 100)
QUICK = Sizes({"uvloop": 1}, 200, 2, 1.0, (200,), 30)

Figures = dict[str, list[float]]


async def microseconds_each(work: Awaitable[int]) -> float:
    """Return the CPU of this process, all threads, divided by the count that `work` returns."""
    gc.collect()
    started = time.process_time()
    count = await work
    return (time.process_time() - started) * 1e6 / count


async def unary_calls(client: Client, url: httpx.URL, calls: int, at_once: int) -> int:
    async def some() -> None:
        for _ in range(calls // at_once):
            assert len(await client.unary(url)) == len(ANSWER)

    await asyncio.gather(*(some() for _ in range(at_once)))
    return calls // at_once * at_once


async def read_streams(client: Client, url: httpx.URL, streams: int, rounds: int, chunks: int) -> int:
    async def read() -> None:
        events = 0
        async for data in client.stream(url):
            events += data.count(b"data: {")
        assert events == chunks, f"{events} of {chunks} chunks"

    for _ in range(rounds):
        await asyncio.gather(*(read() for _ in range(streams)))
    return streams * rounds * chunks


@contextlib.asynccontextmanager
async def open_streams(client: Client, url: httpx.URL, count: int) -> AsyncIterator[None]:
    """Keep `count` streams open that have had their first chunk and never get a second."""
    streams = [client.stream(url) for _ in range(count)]
    try:
        for start in range(0, count, 100):
            await asyncio.gather(*(anext(stream) for stream in streams[start : start + 100]))
        yield
    finally:
        for stream in streams:
            await stream.aclose()


async def delays_milliseconds(client: Client, url: httpx.URL) -> list[float]:
    """Return the delay from the upstream's send to the arrival, one figure per piece."""
    delays = []
    async for data in client.stream(url):
        if data.startswith(b"data: {"):
            delays.append((time.monotonic_ns() - int(data[SENT])) / 1e6)
    return delays


async def one_turn(build: Callable[[], Client], base: httpx.URL, sizes: Sizes) -> Figures:
    client = build()
    figures: Figures = defaultdict(list)
    unary, paced_chunks = base.join("/unary"), int(sizes.paced_seconds / PACE_SECONDS)

    async def measure(column: str, work: Awaitable[int]) -> None:
        figures[column].append(await microseconds_each(work))

    try:
        await unary_calls(client, unary, 20, 1)
        await measure("unary, µs", unary_calls(client, unary, sizes.unary_calls, 1))
        await unary_calls(client, unary, 100, 50)
        await measure("50 at once, µs", unary_calls(client, unary, sizes.unary_calls, 50))
        burst = read_streams(client, base.join("/burst"), 20, sizes.burst_rounds, CHUNKS_PER_BURST)
        await measure("burst, µs/chunk", burst)
        paced = read_streams(client, base.join(f"/paced/{paced_chunks}"), 100, 1, paced_chunks)
        await measure("paced, µs/chunk", paced)
        for count in sizes.open_streams:
            async with open_streams(client, base.join("/open"), count):
                calls = unary_calls(client, unary, sizes.calls_while_open, 1)
                await measure(f"unary, {count} open, µs", calls)
        figures["delays"] = await delays_milliseconds(client, base.join("/paced/25"))
    finally:
        await client.aclose()
    return figures


# --- the run and its table -------------------------------------------------------------------------------------------

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


def take_turns(loop: str, turns: int, base: httpx.URL, sizes: Sizes) -> dict[str, Figures]:
    """Measure every client once per turn, so that drifting noise affects all of them."""
    figures: dict[str, Figures] = {name: defaultdict(list) for name in CLIENTS}
    for turn in range(turns):
        for name, build in CLIENTS.items():
            print(f"{loop} {turn + 1}/{turns} {name}", file=sys.stderr)
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                for column, values in runner.run(one_turn(build, base, sizes)).items():
                    figures[name][column] += values
    return figures


def cpu_cell(values: list[float], yardstick: list[float]) -> str:
    middle = statistics.median(values)
    spread = f" ±{(max(values) - min(values)) / 2:.0f}" if len(values) > 1 else ""
    return f"{middle:.0f}{spread} ({middle / statistics.median(yardstick):.2f})"


def delay_cell(delays: list[float], turns: int) -> str:
    return f"{statistics.median(delays):.1f} / {max(delays):.1f} ({len(delays) // turns} of 25)"


def table(figures: dict[str, Figures], turns: int) -> str:
    columns = [column for column in figures[YARDSTICK] if column != "delays"]
    lines = [["client", *columns, "delay, ms: median / most (pieces)"]]
    lines.append(["---", *["--:"] * (len(columns) + 1)])
    for name, by_column in figures.items():
        cells = [cpu_cell(by_column[column], figures[YARDSTICK][column]) for column in columns]
        lines.append([name, *cells, delay_cell(by_column["delays"], turns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one turn under uvloop, in well under a minute")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        asyncio.run(serve_until_stdin_ends())
        return
    sizes = QUICK if options.quick else FULL
    with upstream() as base:
        for loop, turns in sizes.turns_by_loop.items():
            figures = take_turns(loop, turns, base, sizes)
            print(f"\n**{loop}**, {turns} turn(s), CPU of the client process\n\n{table(figures, turns)}", flush=True)


if __name__ == "__main__":
    main()
