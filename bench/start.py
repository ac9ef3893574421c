"""How long from the start of the process until it serves? Wall time, against a process that only imports gRPC.

    python bench/start.py [--runs N]

What it measures, each in turn:

    imports     a Python process that imports grpc.aio and exits: the floor
    serving     `serve`, until grpc.health.v1 responds with SERVING
    workers     `serve --workers 2`, until all workers have started

How to read it: medians, with the least and the most. The promise is 1.5 s for `serving` on an idle machine; the ratio
to the floor is more reliable. It takes about half a minute.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.process import ANY_PORTS, running


def imports() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import grpc.aio"], check=True)
    return time.monotonic() - started


def serving() -> float:
    started = time.monotonic()
    with running("serve", *ANY_PORTS) as process:
        address = process.log("serving")["listen"]
        with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        return time.monotonic() - started


def workers() -> float:
    started = time.monotonic()
    with running("serve", "--workers=2", *ANY_PORTS) as process:
        process.log("workers_started")
        return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="default: %(default)s")
    runs = parser.parse_args().runs
    kinds: list[Callable[[], float]] = [imports, serving, workers]
    seconds: dict[str, list[float]] = {kind.__name__: [] for kind in kinds}
    for _ in range(runs):
        for kind in kinds:
            seconds[kind.__name__].append(kind())
    floor = statistics.median(seconds["imports"])
    print(f"{'':10} {'median s':>9} {'least':>7} {'most':>7} {'ratio':>7}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:10} {median:9.2f} {min(values):7.2f} {max(values):7.2f} {median / floor:7.1f}")


if __name__ == "__main__":
    main()
