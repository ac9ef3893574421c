"""Samples of the service's process and metrics, once a second."""

import asyncio
import csv
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TextIO
from urllib.request import urlopen

from load import OUTCOMES, Load

QUIET_SECONDS = 40.0
"""Longest wait for the quiet state; idle connections to the upstream are kept for 15 s."""
METRICS = {
    "tasks": "chatrpc_asyncio_tasks",
    "in_flight": "chatrpc_rpcs_in_flight",
    "started": "grpc_server_started_total",
    "handled": "grpc_server_handled_total",
}
LISTENING = "0A"
"""In /proc/net/tcp."""

Sample = dict[str, Any]
"""The service process at one moment, and the calls done by then: a row of samples.csv."""


class Watch:
    """Samples the service once a second, into `samples` and a CSV file, and prints the progress.

    `serving` is the log line of the start, `phase` the name of the current phase.
    """

    def __init__(self, pid: int, serving: dict[str, str], load: Load, table: TextIO) -> None:
        self.samples: list[Sample] = []
        self.phase = "warm-up"
        self._process = Path(f"/proc/{pid}")
        self._serving = serving
        self._load = load
        self._table = csv.writer(table)

    @asynccontextmanager
    async def sampling(self) -> AsyncIterator[None]:
        """Take samples; stop on exit."""
        async with asyncio.TaskGroup() as tasks:
            endless = tasks.create_task(self._sample_again())
            yield
            endless.cancel()

    async def quiet(self) -> Sample:
        """Wait until the service is idle, or until the time limit; return the last sample."""
        self.phase = "quiet"
        end = time.monotonic() + QUIET_SECONDS
        while True:
            await asyncio.sleep(1.5)  # for a sample after the last call
            last = self.samples[-1]
            idle = last["in_flight"] == last["caller_connections"] == last["upstream_connections"] == 0
            if idle or time.monotonic() > end:
                return last

    async def _sample_again(self) -> None:
        began = printed = time.monotonic()
        terminal = sys.stdout.isatty()
        while True:
            await asyncio.sleep(1 - (time.monotonic() - began) % 1)  # the next full second
            sample = {"seconds": round(time.monotonic() - began, 2), "phase": self.phase, **self._of_process()}
            # Scrape after that, because the scrape itself uses a thread and a connection.
            sample |= _of_metrics(await asyncio.to_thread(_get, self._serving["metrics"]))
            sample |= {outcome: self._load.outcomes[outcome] for outcome in OUTCOMES}
            if not self.samples:
                self._table.writerow(sample)
            self._table.writerow(sample.values())
            self.samples.append(sample)
            if time.monotonic() - printed >= (2 if terminal else 30):
                printed = time.monotonic()
                counts = ", ".join(f"{sample[outcome]} {outcome}" for outcome in OUTCOMES)
                line = f"{sample['seconds']:5.0f} s  {self.phase:7}  {counts}; {sample['rss_mib']:.1f} MiB"
                print(f"\r{line}\033[K" if terminal else line, end="" if terminal else "\n", flush=True)

    def _of_process(self) -> Sample:
        status = dict(line.split(":", 1) for line in (self._process / "status").read_text().splitlines())
        targets = []
        for descriptor in (self._process / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                targets.append(os.readlink(descriptor))
        connections = Counter[tuple[str, int]]()
        for family in ("tcp", "tcp6"):  # gRPC uses IPv6 sockets even for an IPv4 address
            for line in (self._process / "net" / family).read_text().splitlines()[1:]:
                _, local, remote, state, *_, inode = line.split()[:10]
                if state != LISTENING and f"socket:[{inode}]" in targets:
                    connections.update({("local", int(local[-4:], 16)), ("remote", int(remote[-4:], 16))})
        return {
            "rss_mib": round(int(status["VmRSS"].split()[0]) / 1024, 2),
            "threads": int(status["Threads"]),
            "descriptors": len(targets),
            "caller_connections": connections["local", _port(self._serving["listen"])],
            "upstream_connections": connections["remote", _port(self._serving["upstream"])],
        }


def _port(address: str) -> int:
    return int(re.findall(r":(\d+)", address)[0])


def _get(url: str) -> str:
    with urlopen(url, timeout=10) as response:
        return str(response.read().decode())


def _of_metrics(page: str) -> Sample:
    """Return metrics, each summed over its labels. A missing one is NaN, which fails every check."""
    totals = {}
    for what, name in METRICS.items():
        values = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", page, flags=re.MULTILINE)
        totals[what] = sum(map(float, values)) if values else math.nan
    return totals
