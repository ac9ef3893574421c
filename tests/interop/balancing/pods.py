"""Instances like pods behind one name: processes at different addresses and the same port."""

import asyncio
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from chatrpc_echo import Echo
from support.callers import unary
from support.process import Process, running

HOSTS = ("127.0.0.1", "127.0.0.2")
DRAIN_DELAY_SECONDS = 3
"""More than the two seconds in which Envoy's health checks notice it."""


class Pod:
    """One instance with its own upstream, which records the pod's requests."""

    def __init__(self, host: str, port: int, echo: Echo, process: Process) -> None:
        self.host, self.port, self.echo, self._process = host, port, echo, process
        self._started = process.log("serving")

    def call_count(self, model: str | None = None) -> int:
        """Return the number of calls to this pod, of all models or of one."""
        return sum(model in (None, received.body["model"]) for received in self.echo.requests)

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples."""
        with urllib.request.urlopen(self._started["metrics"], timeout=5) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    async def drain(self) -> int:
        """Stop the process as Kubernetes does; return its exit code."""
        self._process.signal(signal.SIGTERM)
        return await asyncio.to_thread(self._process.wait)

    async def kill(self) -> None:
        """Kill the process."""
        self._process.signal(signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)


@asynccontextmanager
async def serving(*arguments: str) -> AsyncIterator[list[Pod]]:
    """Run one instance at each of HOSTS, with these further arguments."""
    port = free_port()
    async with AsyncExitStack() as stack:

        async def start(host: str) -> Pod:
            echo = await stack.enter_async_context(Echo())
            own = (
                f"--listen={host}:{port}",
                "--metrics-listen=127.0.0.1:0",
                f"--drain.delay-seconds={DRAIN_DELAY_SECONDS}",
                "--upstream.max-retries=0",
            )
            process = stack.enter_context(running("serve", *own, *arguments, OPENAI_BASE_URL=echo.base_url))
            return await asyncio.to_thread(Pod, host, port, echo, process)

        yield await asyncio.gather(*map(start, HOSTS))


async def connected(stub: Any, pods: list[Pod]) -> None:
    """Call until each pod has had a call, because the first connected pod receives all calls at first."""
    async with asyncio.timeout(10):
        while not all(pod.call_count() for pod in pods):
            await unary(stub)


def free_port() -> int:
    """Return a port that is free at each of HOSTS."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind((HOSTS[0], 0))
            port: int = first.getsockname()[1]
            try:
                second.bind((HOSTS[1], port))
            except OSError:
                continue
            return port
