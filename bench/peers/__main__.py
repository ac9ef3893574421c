"""The service beside its rivals: one upstream, the same two cores, all in turns.

    python bench/peers [--quick] [--rounds N] [--only NAME ...] [--out FOLDER]

What it measures: the service (with its defaults, with one message per chunk, and with two workers), the floor under it,
the naive wrapper, and every installed rival: calls and chunks a second, CPU of the server's processes per call and per
chunk, time to the first chunk and jitter of paced streams, memory, cold start, and how soon the upstream sees a cancel.
It checks the status, the text, the end and the number of messages of each response.

How to read it: compare figures of one run only; a figure is the median of its rounds, the least and the most in
brackets. The upstream and the callers are one compiled process and share the cores with the server. All other servers
are stopped meanwhile. Writes tables, the figures as JSON, and plots. Exits with 1 if a response of the service, the
floor or the naive wrapper was wrong.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measures
import ours
import report
import rig as rigs
from processes import Running, Server, start
from rig import Rig, RigError

OURS = (ours.CHATRPC, ours.ONE_BY_ONE, ours.TWO_WORKERS, ours.FLOOR, ours.TWO_FLOORS, ours.NAIVE)
QUICK = (ours.CHATRPC, ours.FLOOR, ours.NAIVE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two minutes: the floor and the naive wrapper only")
    parser.add_argument("--rounds", type=int, help="turns of each load (3; quick: 2)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these servers; the names are those of the table")
    parser.add_argument("--loads", nargs="+", metavar="KEY", help=f"these loads: {[one.key for one in measures.LOADS]}")
    parser.add_argument("--docs", action="store_true", help="also write docs/performance.md and bench/README.md")
    parser.add_argument("--plot-with", metavar="PYTHON", help="a Python that has matplotlib")
    parser.add_argument("--out", type=Path, default=rigs.ROOT / "build/bench", help="folder of the results")
    args = parser.parse_args()
    servers = _servers(args)
    keys = args.loads or (measures.QUICK if args.quick else [load.key for load in measures.LOADS])
    loads = [load for load in measures.LOADS if load.key in keys]
    rounds = args.rounds or (2 if args.quick else 3)
    _take_two_cores()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # so that the servers are stopped
    rigs.build()
    # Otherwise the first server would compile its modules while its start is measured.
    compileall.compile_dir(rigs.ROOT / "service", quiet=1)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatrpc-bench-")))
        rig = stack.enter_context(Rig())
        results = measure(rig, servers, loads, rounds, folder, stack, whole=not args.loads, quick=args.quick)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1))
    text = f"{report.markdown(results)}\n### Targets\n\n{report.targets(results)}"
    (args.out / "results.md").write_text(text)
    print(text)
    if args.plot_with:
        subprocess.run(
            [args.plot_with, Path(__file__).parent / "plots.py", args.out / "results.json", args.out], check=True
        )
    if args.docs:
        report.into_docs(results, args.out, rigs.ROOT)
    print(f"written to {args.out}", file=sys.stderr)
    wrong = report.faults(results, [server.name for server in OURS])
    for line in wrong:
        print(f"WRONG RESPONSES: {line}", file=sys.stderr)
    return 1 if wrong else 0


def measure(
    rig: Rig,
    servers: list[Server],
    loads: list[measures.Load],
    rounds: int,
    folder: Path,
    stack: contextlib.ExitStack,
    *,
    whole: bool,
    quick: bool,
) -> dict[str, Any]:
    """Measure all servers. `whole`: also memory and cancels. A server that cannot start is reported and left out."""
    machine = {"cpu": _cpu_model(), "cores": sorted(os.sched_getaffinity(0)), "python": sys.version.split()[0]}
    results: dict[str, Any] = {
        "machine": machine,
        "rounds": rounds,
        "servers": {ours.DIRECT: {"kind": "no server between"}},
    }
    running: dict[str, Running | None] = {ours.DIRECT: None}
    for number, server in enumerate(servers):
        figures: dict[str, Any] = {"kind": server.kind, "slow": server.slow}
        _say(f"starting {server.name}")
        try:
            one, seconds = measures.started(rig, lambda: start(server, rig.port, folder / str(number)))  # noqa: B023
        except (RigError, OSError) as error:
            _say(f"LEFT OUT: {server.name}: {error}")
            results.setdefault("left_out", {})[server.name] = str(error).splitlines()[0]
            continue
        stack.callback(one.stop)
        figures["start_seconds"] = seconds
        if whole and not (quick and server.slow):
            _say(f"holding streams open: {server.name}")
            figures["held"] = measures.held(rig, one)
        one.pause()
        running[server.name], results["servers"][server.name] = one, figures
    if whole:
        for name, target in running.items():
            _say(f"cancelling: {name}")
            with turn(target):
                results["servers"][name]["cancel"] = measures.cancels(rig, target, 20 if quick else 100)
    for number in range(rounds):
        for load in loads:
            for name, target in random.sample(list(running.items()), len(running)):
                figures = _in_turn(rig, load, target)
                if figures:
                    results["servers"][name].setdefault(load.key, []).append(figures)
                    _say(
                        f"round {number + 1} of {rounds}: {load.key}: {name}: {figures.get('per_second', 0):.0f}/s,"
                        f" {figures.get('cpu_us', 0):.1f} µs {figures['faults'] or ''}"
                    )
    return results


def _in_turn(rig: Rig, load: measures.Load, target: Running | None) -> measures.Figures | None:
    server = target.server if target else None
    if server and ((load.chunks and not server.streams) or (server.slow and not load.slow_ones_too)):
        return None
    with turn(target):
        return load(rig, target)


@contextlib.contextmanager
def turn(target: Running | None) -> Any:
    """Resume a stopped server for the duration of the context."""
    if target:
        target.go_on()
    try:
        yield
    finally:
        if target:
            target.pause()


def _servers(args: argparse.Namespace) -> list[Server]:
    if args.quick:
        servers = list(QUICK)
    else:
        import rivals

        servers = [*OURS, *rivals.servers()]
    if args.only:
        unknown = set(args.only) - {server.name for server in servers}
        if unknown:
            sys.exit(f"no such server: {sorted(unknown)}; there are {[server.name for server in servers]}")
        servers = [server for server in servers if server.name in args.only]
    return servers


def _take_two_cores() -> None:
    """Pin this process and its children to two cores; raise the limit of open files to its maximum."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
