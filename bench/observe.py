"""What do metrics and access lines cost? CPU of the service with and without them.

    python bench/observe.py [--rounds N] [--json FILE]

What it measures: the service as a separate process, in variants side by side: without metrics of calls and attempts;
with metrics; with metrics and access lines (JSON, to /dev/null). Each variant gets the same unary calls and the same
streams of 400 chunks, one message per chunk, in turns. The CPU is that of its process, from the kernel's scheduler.
The upstream is the embedded one, in the process of the caller.

How to read it: the cost is the ratio of the medians of all rounds to the first row. The brackets hold the middle half
of the ratios round by round. The second row repeats the first, so its distance from 1 is noise.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import grpc

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from support import request

UNARY_CALLS, STREAMS, CHUNKS, AT_ONCE = 100, 4, 400, 4
VARIANTS = ("off", "off again", "metrics", "metrics and access lines")
"""The order changes from round to round."""


# --- the service ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def no_layer(*_: Any) -> AsyncIterator[None]:
    yield


@contextlib.contextmanager
def no_observer(_: Any, call: Any, attempt: Any) -> Iterator[Any]:
    yield call.forward


def serve(variant: str) -> int:
    """Run the service without the parts that the variant omits."""
    from chatrpc_server import cli
    from chatrpc_server.rpc.layers.access_log import AccessLog
    from chatrpc_server.rpc.layers.metrics import CallMetrics
    from chatrpc_server.upstream.metrics import AttemptMetrics

    level = "info" if variant == VARIANTS[3] else "warning"
    flags = ["serve", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", f"--log.level={level}"]
    with contextlib.ExitStack() as stack:
        if variant.startswith("off"):
            stack.enter_context(mock.patch.object(CallMetrics, "__call__", no_layer))
            stack.enter_context(mock.patch.object(AccessLog, "__call__", no_layer))
            stack.enter_context(mock.patch.object(AttemptMetrics, "request", no_observer))
            no_gaps = mock.patch.object(AttemptMetrics, "gaps", return_value=contextlib.nullcontext(float))
            stack.enter_context(no_gaps)
        # The address is a line of the log, which not all variants write.
        started = mock.patch("chatrpc_server.server.Server.start", _printing(_server().start))
        stack.enter_context(started)
        return cli.main(flags)


def _server() -> Any:
    from chatrpc_server.server import Server

    return Server


def _printing(start: Any) -> Any:
    async def start_and_print(self: Any) -> None:
        await start(self)
        print(self.address, flush=True)

    return start_and_print


# --- the load ---------------------------------------------------------------------------------------------------------


class Service:
    """One running variant and its figures."""

    def __init__(self, process: asyncio.subprocess.Process, stub: Any) -> None:
        self._pid, self._stub = process.pid, stub
        self.unary_us: list[float] = []
        self.chunk_us: list[float] = []

    async def round(self) -> None:
        """Make unary calls, then streams."""
        before = self._cpu_seconds()
        await self._at_once(UNARY_CALLS, self._unary)
        between = self._cpu_seconds()
        await self._at_once(STREAMS, self._stream)
        self.unary_us.append((between - before) / UNARY_CALLS * 1e6)
        self.chunk_us.append((self._cpu_seconds() - between) / (STREAMS * CHUNKS) * 1e6)

    async def _unary(self) -> None:
        assert (await self._stub.CreateChatCompletion(request())).choices

    async def _stream(self) -> None:
        call = self._stub.CreateChatCompletionStream(
            request(model=f"echo:pieces={CHUNKS}"), metadata=[("x-chatrpc-coalesce", "off")]
        )
        assert len([chunk async for chunk in call]) >= CHUNKS

    async def _at_once(self, count: int, one: Any) -> None:
        left = iter(range(count))

        async def some() -> None:
            for _ in left:
                await one()

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))

    def _cpu_seconds(self) -> float:
        threads = Path(f"/proc/{self._pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


@contextlib.asynccontextmanager
async def running(variant: str, base_url: str) -> AsyncIterator[Service]:
    """Run the variant for the duration of the context."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--serve", variant, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | {"OPENAI_BASE_URL": base_url},
    )  # fmt: skip
    assert process.stdout
    try:
        address = (await process.stdout.readline()).decode().strip()
        async with grpc.aio.insecure_channel(address) as channel:
            yield Service(process, ChatCompletionServiceStub(channel))
    finally:
        process.kill()
        await process.wait()


async def measure(rounds: int) -> dict[str, Service]:
    """Measure all variants in turns."""
    async with Echo() as echo, contextlib.AsyncExitStack() as stack:
        services = {name: await stack.enter_async_context(running(name, echo.base_url)) for name in VARIANTS}
        for number in range(rounds + 1):
            print(f"round {number} of {rounds}", file=sys.stderr)
            for service in random.sample(list(services.values()), len(services)):
                await service.round()
    return services


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    if args.rounds < 2:
        parser.error("--rounds: at least 2, to have a middle")
    services = asyncio.run(measure(args.rounds))
    # The first round warms up.
    figures = {name: {"unary": one.unary_us[1:], "chunk": one.chunk_us[1:]} for name, one in services.items()}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))
    for kind in ("unary", "chunk"):
        print(f"\n| variant | CPU of a {kind}, µs | ratio |\n| --- | --: | --: |")
        off = figures["off"][kind]
        for name, kinds in figures.items():
            median = statistics.median(kinds[kind])
            low, _, high = statistics.quantiles([value / at for value, at in zip(kinds[kind], off, strict=True)])
            print(f"| {name} | {median:.1f} | {median / statistics.median(off):.3f} ({low:.2f} to {high:.2f}) |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
