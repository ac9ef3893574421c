"""Callers with the service config of docs/usage.md or with none: one call, concurrent calls, or a steady load."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from support import Outcome, outcome, request

_USAGE = (Path(__file__).parents[2] / "docs" / "usage.md").read_text()
(_JSON,) = re.findall(r"```json\n(.*?)```", _USAGE, re.DOTALL)
SERVICE_CONFIG: dict[str, Any] = json.loads(_JSON)
"""The service config of docs/usage.md. Each half is enough: `healthCheckConfig` or `methodConfig`."""
NOTHING: dict[str, Any] = {}

_MAX_MESSAGE_BYTES = 20 << 20
_PIECES = 30
_STREAM = f"echo:pieces={_PIECES},pace=0.03"


@asynccontextmanager
async def calling(
    target: str, config: dict[str, Any] = SERVICE_CONFIG, lookup_seconds: float = 0.1
) -> AsyncIterator[Any]:
    """A stub whose channel has this service config, and looks its name up that often at most."""
    options = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.enable_http_proxy", 0),
        # So that the tests do not take minutes: gRPC's defaults are 1 s, 2 min and 30 s.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 300),
        ("grpc.dns_min_time_between_resolutions_ms", round(lookup_seconds * 1000)),
    ]
    async with grpc.aio.insecure_channel(target, options) as channel:
        yield ChatCompletionServiceStub(channel)


def unary(stub: Any, model: str = "echo", text: str = "Hello!", **options: Any) -> "asyncio.Task[Outcome]":
    """Start a unary call."""
    options = {"timeout": 20, **options}
    return asyncio.create_task(outcome(stub.CreateChatCompletion(request(text, model), **options)))


def stream(stub: Any, model: str, **options: Any) -> "asyncio.Task[Outcome]":
    """Start a streaming call."""
    options = {"timeout": 20, **options}
    return asyncio.create_task(outcome(stub.CreateChatCompletionStream(request("Hello!", model), **options)))


async def begun(stub: Any, model: str) -> Any:
    """Start a streaming call; return it after its first message."""
    call = stub.CreateChatCompletionStream(request("Hello!", model), timeout=20)
    await call.read()
    return call


async def rest(call: Any) -> grpc.StatusCode:
    """Read the rest of a stream; return its status."""
    with suppress(grpc.aio.AioRpcError):
        while await call.read():
            pass
    code: grpc.StatusCode = await call.code()
    return code


def whole(ended: Outcome, pieces: int) -> bool:
    """Return whether a stream of echo's pieces is complete."""
    text = "".join(choice.delta.content for chunk in ended.messages for choice in chunk.choices)
    return ended.code is grpc.StatusCode.OK and text.split() == [str(piece) for piece in range(1, pieces + 1)]


@asynccontextmanager
async def load(stub: Any, callers: int = 8) -> AsyncIterator[Counter[str]]:
    """Callers that call until the context exits, half of them streaming. Counts their outcomes, `whole` or other."""
    outcomes: Counter[str] = Counter()
    leaving = asyncio.Event()

    async def caller(number: int) -> None:
        said = f"Hello {number}!"
        while not leaving.is_set():
            streaming = number % 2
            ended = await (stream(stub, _STREAM) if streaming else unary(stub, "echo:delay=0.02", said))
            if ended.code is not grpc.StatusCode.OK:
                outcomes[f"{ended.code.name}: {ended.message}"] += 1
            elif streaming:
                outcomes["whole" if whole(ended, _PIECES) else "cut"] += 1
            else:
                text = ended.messages[0].choices[0].message.content
                outcomes["whole" if text == f"You said: {said}" else "another's"] += 1

    tasks = [asyncio.create_task(caller(number)) for number in range(callers)]
    try:
        yield outcomes
    finally:
        leaving.set()
        await asyncio.gather(*tasks)


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Poll until the condition holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
