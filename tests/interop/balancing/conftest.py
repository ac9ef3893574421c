"""Two instances, their DNS name, and Envoys in front of them. Collected only by tests/interop/balancing/run."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from interop.balancing.names import HeadlessName, headless_name
from interop.balancing.pods import HOSTS, Pod, serving
from interop.balancing.proxy import MISSING, PROGRAM, Change, Envoy, Proxied, as_shipped, envoy

collect_ignore_glob = [] if "BALANCING" in os.environ else ["test_*.py"]


@pytest.fixture
async def pods() -> AsyncIterator[list[Pod]]:
    """One instance at each of HOSTS."""
    async with serving() as pods:
        yield pods


@pytest.fixture
async def name() -> AsyncIterator[HeadlessName]:
    """The DNS name, at first with both addresses."""
    async with headless_name(*HOSTS) as name:
        yield name


@pytest.fixture
async def ageing() -> AsyncIterator[list[Pod]]:
    """Instances whose connections close after one second instead of ten minutes."""
    async with serving("--limits.max-connection-age-seconds=1") as pods:
        yield pods


@pytest.fixture
async def proxied(name: HeadlessName, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxied]:
    """A function that starts an Envoy in front of pods, optionally with a changed configuration."""
    if not PROGRAM:
        pytest.skip(MISSING)
    async with AsyncExitStack() as stack:

        async def start(pods: list[Pod], change: Change = as_shipped) -> Envoy:
            folder = tmp_path_factory.mktemp("envoy")
            return await stack.enter_async_context(envoy(folder, name, pods[0].port, change))

        yield start
