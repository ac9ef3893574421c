"""A rolling restart under load loses no call: real processes, and callers configured as the README tells them to."""

import asyncio
import json
import re
import signal
import socket
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from e2e.process import Process, running

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_server.echo import Echo
from support import collect, request

README = Path(__file__).parents[2] / "README.md"
(SERVICE_CONFIG,) = re.findall(r"```json\n(.*?)```", README.read_text(), re.DOTALL)
CALLERS = 16
PIECES = 30


def _service_config(without: str) -> str:
    config = json.loads(SERVICE_CONFIG)
    del config[without]
    return json.dumps(config)


class Instance:
    """One of the processes behind the name, restarted at the same address."""

    def __init__(self, stack: ExitStack, base_url: str) -> None:
        self._stack, self._base_url = stack, base_url
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.start()

    def start(self) -> None:
        arguments = (f"--listen={self.address}", "--metrics-listen=127.0.0.1:0", "--drain.delay-seconds=0.5")
        self._process: Process = self._stack.enter_context(running("serve", *arguments, OPENAI_BASE_URL=self._base_url))
        self._metrics = self._process.log("serving")["metrics"]

    def restart(self) -> int:
        """The exit code of the old one."""
        self._process.signal(signal.SIGTERM)
        code = self._process.wait()
        self.start()
        return code

    def calls(self) -> bool:
        """Whether calls arrive."""
        with urlopen(self._metrics, timeout=5) as response:
            lines = response.read().decode().splitlines()
        return any(line.startswith("grpc_server_started_total{") and not line.endswith(" 0.0") for line in lines)


async def _caller(stub: Any, number: int, outcomes: Counter[str], stop: asyncio.Event) -> None:
    """One call after another, unary or streaming; each must bring its whole answer."""
    while not stop.is_set():
        try:
            if number % 2:
                asked = request(f"Hello {number}!", "echo:delay=0.02")
                text = (await stub.CreateChatCompletion(asked, timeout=20)).choices[0].message.content
                whole = text == f"You said: Hello {number}!"
            else:
                chunks = await collect(stub.CreateChatCompletionStream(request(model=_STREAM), timeout=20))
                pieces = "".join(choice.delta.content for chunk in chunks for choice in chunk.choices).split()
                whole = pieces == [str(piece) for piece in range(1, PIECES + 1)]
            outcomes["whole" if whole else "cut"] += 1
        except grpc.aio.AioRpcError as error:
            outcomes[f"{error.code().name}: {error.details()}"] += 1


_STREAM = f"echo:pieces={PIECES},pace=0.03"


@pytest.mark.parametrize("without", ["methodConfig", "healthCheckConfig"], ids=["watching-health", "retrying"])
@pytest.mark.timeout(120)
async def test_no_call_is_lost_and_none_cut(echo: Echo, without: str) -> None:
    """Either half of the README's configuration is enough."""
    outcomes: Counter[str] = Counter()
    stop = asyncio.Event()
    with ExitStack() as stack:
        instances = [Instance(stack, echo.base_url) for _ in range(2)]
        options = [
            ("grpc.service_config", _service_config(without)),
            ("grpc.initial_reconnect_backoff_ms", 100),  # so that the test does not take a minute
            ("grpc.max_reconnect_backoff_ms", 300),
            ("grpc.enable_http_proxy", 0),
        ]
        target = "ipv4:" + ",".join(instance.address for instance in instances)
        async with grpc.aio.insecure_channel(target, options) as channel:
            stub = ChatCompletionServiceStub(channel)
            callers = [asyncio.create_task(_caller(stub, number, outcomes, stop)) for number in range(CALLERS)]
            for instance in instances * 2:
                async with asyncio.timeout(20):
                    while not all([await asyncio.to_thread(each.calls) for each in instances]):
                        await asyncio.sleep(0.05)
                assert await asyncio.to_thread(instance.restart) == 0
            stop.set()
            await asyncio.gather(*callers)
    assert outcomes.keys() == {"whole"}, outcomes
    assert outcomes["whole"] > 20 * CALLERS, "there was a load"
