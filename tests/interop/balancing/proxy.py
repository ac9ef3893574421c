"""Envoy as a process with deploy/envoy/envoy.yaml; the test sets only its addresses and its DNS server."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from interop.balancing.names import HeadlessName
from support.process import Process, running

_ROOT = Path(__file__).parents[3]
CONFIG = _ROOT / "deploy/envoy/envoy.yaml"
PROGRAM = next(_ROOT.glob(".tools/peers/envoy/lib/python3*/site-packages/envoy/_bin/envoy"), None)
MISSING = "Envoy: not installed; run tests/interop/balancing/install"
_SECONDS_TO_START = 15


class Config:
    """Parts of the file, which can be changed in place."""

    def __init__(self) -> None:
        self.all: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        resources = self.all["static_resources"]
        (self.listener,), (self.cluster,) = resources["listeners"], resources["clusters"]
        self.http = self.listener["filter_chains"][0]["filters"][0]["typed_config"]
        (self.route,) = self.http["route_config"]["virtual_hosts"][0]["routes"]
        self.action = self.route["route"]
        (self.breakers,) = self.cluster["circuit_breakers"]["thresholds"]

    def placed(self, name: HeadlessName, port: int) -> dict[str, Any]:
        """Return the configuration for pods at this name and port."""
        for place in (self.all["admin"], self.listener):
            place["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": 0}
        (endpoint,) = self.cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        endpoint["endpoint"]["address"]["socket_address"]["port_value"] = port
        resolver = "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"
        resolver_address = {"socket_address": {"address": name.host, "port_value": name.port}}
        self.cluster["typed_dns_resolver_config"] = {
            "name": "envoy.network.dns_resolver.cares",
            "typed_config": {"@type": resolver, "resolvers": [resolver_address]},
        }
        return self.all


Change = Callable[[Config], object]


def as_shipped(config: Config) -> None:
    """Change nothing."""


class Envoy:
    """A running Envoy."""

    def __init__(self, process: Process, admin: str) -> None:
        self._process, self._admin = process, admin
        (listener,) = json.loads(self._get("/listeners?format=json"))["listener_statuses"]
        self.target = "{address}:{port_value}".format(**listener["local_address"]["socket_address"])

    def stat(self, name: str) -> int:
        """Return a counter or gauge."""
        (line,) = self._get(f"/stats?filter=^{name}$").splitlines()
        return int(line.rpartition(" ")[2])

    def active(self) -> dict[str, int]:
        """Return the number of active requests by instance address."""
        (cluster,) = json.loads(self._get("/clusters?format=json"))["cluster_statuses"]
        return {
            host["address"]["socket_address"]["address"]: int(stat.get("value", 0))
            for host in cluster["host_statuses"]
            for stat in host["stats"]
            if stat["name"] == "rq_active"
        }

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self._admin}{path}", timeout=5) as response:
            text: str = response.read().decode()
        return text


Proxied = Callable[..., Awaitable[Envoy]]
"""Type of the fixture `proxied`."""


@asynccontextmanager
async def envoy(folder: Path, name: HeadlessName, port: int, change: Change = as_shipped) -> AsyncIterator[Envoy]:
    """Run Envoy with a changed file."""
    config = Config()
    change(config)
    file, admin = folder / "envoy.json", folder / "admin"
    file.write_text(json.dumps(config.placed(name, port), indent=1))
    arguments = (
        "--config-path", str(file), "--admin-address-path", str(admin), "--concurrency", "2", "--disable-hot-restart",
        "--log-level", "warning",
    )  # fmt: skip
    with running(*arguments, command=[str(PROGRAM)]) as process:
        await _started(process, admin)
        yield await asyncio.to_thread(Envoy, process, admin.read_text())


async def _started(process: Process, admin: Path) -> None:
    """Wait until Envoy listens, which it does after resolving names and checking each instance's health."""
    async with asyncio.timeout(_SECONDS_TO_START):
        while not await asyncio.to_thread(_ready, admin):
            assert process.popen.poll() is None, "\n".join(process.written())
            await asyncio.sleep(0.02)


def _ready(admin: Path) -> bool:
    try:
        with urllib.request.urlopen(f"http://{admin.read_text()}/ready", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:  # no file yet, or 503
        return False
    except ValueError:  # the file exists, but is still empty
        return False
