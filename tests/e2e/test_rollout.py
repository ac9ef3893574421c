"""A rolling restart under load loses no call: real processes, and callers with the service config of docs/usage.md."""

import asyncio
import signal
import socket
from contextlib import ExitStack
from urllib.request import urlopen

import pytest

from chatrpc_echo import Echo
from support.callers import SERVICE_CONFIG, calling, load
from support.process import Process, running

CALLERS = 16


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


@pytest.mark.parametrize("without", ["methodConfig", "healthCheckConfig"], ids=["watching-health", "retrying"])
@pytest.mark.timeout(120)
async def test_no_call_is_lost_and_none_cut(echo: Echo, without: str) -> None:
    """Either half of the service config is enough."""
    config = {key: value for key, value in SERVICE_CONFIG.items() if key != without}
    with ExitStack() as stack:
        instances = [Instance(stack, echo.base_url) for _ in range(2)]
        target = "ipv4:" + ",".join(instance.address for instance in instances)
        async with calling(target, config) as stub, load(stub, CALLERS) as outcomes:
            for instance in instances * 2:
                async with asyncio.timeout(20):
                    while not all([await asyncio.to_thread(each.calls) for each in instances]):
                        await asyncio.sleep(0.05)
                assert await asyncio.to_thread(instance.restart) == 0
    assert outcomes.keys() == {"whole"}, outcomes
    assert outcomes["whole"] > 20 * CALLERS, "there was a load"
