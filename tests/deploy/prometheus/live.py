"""The real service under a scripted load, and Debian's Prometheus, which scrapes it every second and has the rules."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import grpc
import trustme

from deploy.prometheus.load import MODELS, Load, upstream
from support.process import ANY_PORTS, Process, running

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "deploy" / "prometheus" / "rules"
SECONDS = 30.0
MISSING = "needs prometheus, promtool and jq: `make tools` fetches Debian's into .tools/bin"
PATH = f"{os.environ.get('PATH', '')}:{ROOT / '.tools' / 'bin'}"
"""Where `tool` looks for programs."""
_Value = TypeVar("_Value")


def tool(name: str) -> str | None:
    """Return the path of a program, or None."""
    return shutil.which(name, path=PATH)


@dataclass
class Prometheus:
    """Prometheus's HTTP API. Raises `URLError` if Prometheus rejects a request, such as invalid PromQL."""

    url: str

    def get(self, path: str, **parameters: object) -> Any:
        """Return the data of a response."""
        given = {name: value for name, value in parameters.items() if value is not None}
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(given)}", timeout=SECONDS) as response:
            return json.load(response)["data"]

    def query(self, promql: str, time: float | None = None) -> list[dict[str, Any]]:
        """Return an instant vector: `metric` and `value` of each series; for a scalar one series without labels."""
        data = self.get("query", query=promql, time=time)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        result: list[dict[str, Any]] = data["result"]
        return result

    def query_range(self, promql: str, start: float, end: float, step: float = 1) -> list[dict[str, Any]]:
        """Return series over time: `metric` and `values` of each."""
        result: list[dict[str, Any]] = self.get("query_range", query=promql, start=start, end=end, step=step)["result"]
        return result

    def value(self, promql: str) -> float:
        """Return the value of the first series; NaN without one."""
        series = self.query(promql)
        return float(series[0]["value"][1]) if series else float("nan")


@dataclass
class Live:
    """The running service, its Prometheus and its load."""

    prometheus: Prometheus
    service: Process
    metrics_url: str
    load: Load

    @property
    def query(self) -> Callable[..., list[dict[str, Any]]]:
        """See `Prometheus.query`."""
        return self.prometheus.query

    @property
    def query_range(self) -> Callable[..., list[dict[str, Any]]]:
        """See `Prometheus.query_range`."""
        return self.prometheus.query_range

    def play(self) -> None:
        """Play the load once, until a scrape shows all of it. Short deadlines may expire in the client first."""
        self.load.play()
        self.scraped()
        unfinished = "sum(grpc_server_started_total) - sum(grpc_server_handled_total)"
        until(lambda: self.prometheus.value(unfinished) == 0, "all calls have ended")
        self.scraped()  # metrics that are written after that counter

    def metrics_text(self) -> bytes:
        """Return the present text of /metrics."""
        with urlopen(self.metrics_url, timeout=SECONDS) as response:
            text: bytes = response.read()
        return text

    def scraped(self) -> None:
        """Wait for a scrape that begins after this call."""
        now = time.time()
        until(lambda: self.prometheus.value("timestamp(up{job='chatrpc'})") > now, "another scrape")


def until(holds: Callable[[], bool], what: str) -> None:
    """Poll until the condition holds; fail after `SECONDS`."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"timeout after {SECONDS} s: {what}"
        time.sleep(0.1)


@contextmanager
def live() -> Iterator[Live]:
    """Run service, Prometheus and load for two rounds, because the second increases every series of the first."""
    with tempfile.TemporaryDirectory(prefix="chatrpc-prometheus-") as temporary, upstream() as base_url:
        folder = Path(temporary)
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(folder / "tls.key")
        certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
        (folder / "chatrpc.yaml").write_text(json.dumps(_settings(base_url, folder)))
        with running("serve", *ANY_PORTS, f"--config={folder / 'chatrpc.yaml'}") as service:
            serving = service.log("serving")
            target = serving["metrics"].removeprefix("http://").removesuffix("/metrics")
            credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
            with (
                grpc.secure_channel(serving["listen"], credentials) as channel,
                prometheus(folder, target) as watching,
            ):
                running_now = Live(watching, service, serving["metrics"], Load(channel))
                running_now.play()  # while Prometheus takes five seconds to find its targets
                running_now.play()
                yield running_now


def _settings(base_url: str, folder: Path) -> dict[str, Any]:
    return {
        "models": list(MODELS),
        "tls": {"cert_file": str(folder / "tls.crt"), "key_file": str(folder / "tls.key")},
        "upstream": {
            "base_url": base_url,
            "max_retries": 1,
            "initial_backoff_seconds": 0.01,
            "max_backoff_seconds": 0.02,
            "first_chunk_timeout_seconds": 0.4,
            "chunk_gap_timeout_seconds": 0.4,
        },
        "limits": {"max_in_flight": Load.AT_ONCE, "min_deadline_seconds": 0.2},
    }


@contextmanager
def prometheus(folder: Path, *targets: str) -> Iterator[Prometheus]:
    """Run a Prometheus with our rules that scrapes these addresses, `host:port`, every second."""
    scrape = {"job_name": "chatrpc", "static_configs": [{"targets": targets}]}
    configuration = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES / "*.yaml")],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yaml").write_text(json.dumps(configuration))  # JSON is YAML
    program = tool("prometheus")
    assert program, MISSING
    with _free_port() as port:  # Prometheus does not report its port, so 0 is not possible
        pass
    command = [
        program,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    try:
        started = Prometheus(f"http://127.0.0.1:{port}")
        until(lambda: process.poll() is not None or _ready(started), "Prometheus is ready")
        assert process.poll() is None, "Prometheus exited at once"
        yield started
    finally:
        process.terminate()
        process.wait(SECONDS)


def _ready(started: Prometheus) -> bool:
    try:
        with urlopen(f"{started.url}/-/ready", timeout=1) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


@contextmanager
def _free_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server.getsockname()[1]
