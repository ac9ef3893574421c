"""Sends odd connections to the service and checks after each batch that it still serves.

As a program it runs for a time: `python -m support.inbound_fuzz --seconds 60` (part of `make fuzz`).
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatrpc_echo import Echo
from chatrpc_server.settings import Address
from support import ANY_PORT, Service, collect, http2, odd_requests, request, service

_RESPONSE_SECONDS = 0.1
"""Longest wait for the service's reaction to one connection; not all odd connections get one."""
_CALL_SECONDS = 60.0
BATCH = 25
"""Connections at the same time."""


async def attack(address: Address, pieces: Sequence[bytes]) -> None:
    """Send the pieces on one connection; close it after the service has read them, or after a short wait."""
    with suppress(ConnectionError, TimeoutError):
        async with http2.connect(address, preface=False) as connection:
            for piece in pieces:
                await connection.send(piece)
            async with asyncio.timeout(_RESPONSE_SECONDS):
                await connection.pong()


class Target:
    """The running service, and the exceptions that its event loop reported."""

    def __init__(self, chat: Service) -> None:
        self.chat = chat
        self.unhandled: list[dict[str, Any]] = []

    async def attack(self, batch: Iterable[Sequence[bytes]], *, health: bool = False) -> None:
        """Send a batch at once, then check that the service responds to normal calls."""
        address = self.chat.server.health_address if health else self.chat.server.address
        assert address
        await asyncio.gather(*(attack(address, pieces) for pieces in batch))
        await self.check()

    async def check(self) -> None:
        """Check calls, health on both addresses and metrics."""
        unary = await self.chat.stub.CreateChatCompletion(request(), timeout=_CALL_SECONDS)
        assert unary.choices
        assert await collect(self.chat.stub.CreateChatCompletionStream(request(), timeout=_CALL_SECONDS))
        for address in (self.chat.server.address, self.chat.server.health_address):
            async with grpc.aio.insecure_channel(str(address)) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                response = await check(health_pb2.HealthCheckRequest(), timeout=_CALL_SECONDS)
                assert response.status == response.SERVING
        assert self.chat.value("grpc_server_handled_total") > 0
        assert not self.unhandled, self.unhandled


@asynccontextmanager
async def target() -> AsyncIterator[Target]:
    """A running service with small limits, in front of echo."""
    limits = {"max_in_flight": 200, "default_deadline_seconds": 5}
    async with Echo() as echo, service(echo.base_url, health_listen=ANY_PORT, limits=limits) as chat:
        found = Target(chat)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: found.unhandled.append(context))
        yield found


async def run(seconds: float, seed: int) -> int:
    """Attack for this time; return the number of connections. A failure prints its seeds."""
    until, count = time.monotonic() + seconds, 0
    async with target() as service:
        corpus = list(odd_requests.CORPUS.items())
        while time.monotonic() < until:
            names = [name for name, _ in corpus[count % len(corpus) :][:2]]
            seeds = range(seed + count, seed + count + BATCH)
            batch = [odd_requests.CORPUS[name] for name in names] + [odd_requests.generated(seed) for seed in seeds]
            try:
                await service.attack(batch, health=count // BATCH % 4 == 3)
            except BaseException:
                print(f"inbound: failed after {names} and the seeds {seeds.start} to {seeds.stop - 1}", flush=True)
                raise
            count += BATCH
    return count


def main() -> None:
    """Run for the time of the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, metavar="X")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9, metavar="N", help="first seed")
    args = parser.parse_args()
    print(f"inbound: seed {args.seed}", flush=True)
    count = asyncio.run(run(args.seconds, args.seed))
    print(f"inbound: {count} odd connections in {args.seconds:.0f} s: the service still serves")


if __name__ == "__main__":
    main()
