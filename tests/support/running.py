"""The service on a loopback channel, in the process of the test."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_server.server import Server
from chatrpc_server.settings import Address, Settings

ANY_PORT = Address("127.0.0.1", 0)


@dataclass
class Service:
    """A running server and a way to call it."""

    server: Server
    channel: grpc.aio.Channel
    stub: Any

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        return sum(
            sample.value
            for metric in self.server.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def wait_for(self, value: float, name: str, **labels: str) -> None:
        """Wait until the metric has this value, because the caller may see the end of its call slightly earlier."""
        async with asyncio.timeout(30):
            while self.value(name, **labels) != value:
                await asyncio.sleep(0.001)


def settings(base_url: str, **changes: Any) -> Settings:
    """Return settings for a test's server. Groups are dicts: `upstream={"max_retries": 0}`."""
    upstream = {
        "base_url": base_url,
        "initial_backoff_seconds": 0.01,
        "max_backoff_seconds": 0.02,
        **changes.pop("upstream", {}),
    }
    return Settings(
        listen=ANY_PORT,
        metrics_listen=ANY_PORT,
        upstream=upstream,
        models=changes.pop("models", ["echo"]),
        drain={"delay_seconds": 0, "grace_seconds": 1, **changes.pop("drain", {})},
        **changes,
    )


async def rested(chat: Service) -> None:
    """Wait until every connection to the upstream is idle or closed. It rests for a while after each exchange."""
    async with asyncio.timeout(30):
        while chat.server.upstream.connections()[0]:
            await asyncio.sleep(0.001)


@asynccontextmanager
async def service(base_url: str, *, options: Sequence[tuple[str, Any]] = (), **changes: Any) -> AsyncIterator[Service]:
    """The service in front of that upstream, and a channel to it with these options besides its own."""
    server = Server(settings(base_url, **changes))
    await server.start()
    options = [
        *options,
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", 64 << 20),
        ("grpc.max_send_message_length", 64 << 20),
    ]
    try:
        async with grpc.aio.insecure_channel(str(server.address), options=options) as channel:
            yield Service(server, channel, ChatCompletionServiceStub(channel))
    finally:
        await server.stop()
