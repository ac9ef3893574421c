"""Odd bytes on the port of gRPC: after each batch the service responds to normal calls. `make fuzz` runs for longer."""

from itertools import islice

import pytest

from support import inbound_fuzz, odd_requests

GENERATED = 300


async def test_the_corpus() -> None:
    async with inbound_fuzz.target() as target:
        names = iter(odd_requests.CORPUS)
        while batch := list(islice(names, inbound_fuzz.BATCH)):
            await target.attack([odd_requests.CORPUS[name] for name in batch])


async def test_generated_requests() -> None:
    async with inbound_fuzz.target() as target:
        for first in range(0, GENERATED, 2 * inbound_fuzz.BATCH):
            seeds = range(first, first + 2 * inbound_fuzz.BATCH)
            await target.attack(map(odd_requests.generated, seeds), health=first % 4 == 0)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_many_generated_requests() -> None:
    assert await inbound_fuzz.run(60, seed=10_000) > 0
