"""The service, the floor under it and the naive wrapper, as servers of the benchmark."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path

from processes import Server, Start, free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATH = "/chatrpc.v1.ChatCompletionService"
NAIVE_PYTHON = ROOT / ".tools/peers/naive/bin/python"


def service(*flags: str) -> Start:
    """Return the start of the service with all features and access lines; traces, an extra, are off."""

    def start(port: int, upstream_port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
        command = [
            sys.executable, "-m", "chatrpc_server", "serve", f"--listen=127.0.0.1:{port}", "--log.format=json",
            f"--metrics-listen=127.0.0.1:{free_port()}", "--limits.max-in-flight=4096", *flags,
        ]  # fmt: skip
        return command, {"OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1", "OPENAI_API_KEY": "sk-bench-key"}

    return start


def floor(port: int, upstream_port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, str(HERE / "floor.py"), str(port)], {}


def two_floors(port: int, upstream_port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Start two processes on one port; the kernel distributes the connections. Shows the gain of a second core."""
    one = shlex.join(floor(port, upstream_port, folder)[0])
    return ["/bin/sh", "-c", f"{one} & exec {one}"], {}


def naive(port: int, upstream_port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    command = [str(NAIVE_PYTHON), str(HERE / "naive.py"), str(port), f"http://127.0.0.1:{upstream_port}/v1"]
    return command, {"PYTHONPATH": str(ROOT / "protos/python/src")}


CHATRPC = Server("chatrpc", "Python, gRPC", "grpc", PATH, service())
ONE_BY_ONE = Server("chatrpc, a message per chunk", "Python, gRPC", "grpc", PATH, service("--no-coalesce"))
TWO_WORKERS = Server("chatrpc, 2 workers", "Python, gRPC", "grpc", PATH, service("--workers=2"))
FLOOR = Server("floor", "grpc.aio, ready messages", "grpc", PATH, floor, has_upstream=False)
NAIVE = Server("naive", "grpc.aio and the OpenAI SDK", "grpc", PATH, naive, slow=True)
TWO_FLOORS = replace(FLOOR, name="floor, 2 processes", start=two_floors)
DIRECT = "direct"
"""No server: the callers call the upstream."""
