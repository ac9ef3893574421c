"""A service under mixed load for a long time: does anything grow, and is every outcome as expected?

    tests/robustness/soak/run [--seconds N] [--out FOLDER] [--seed N]

The service and the upstream of tests/support/faults.py are real processes, the callers are tasks in this one. After a
warm-up and a pause, in which the quiet state is noted, the load continues for `--seconds`. Afterwards the quiet state
must be the same again, and resident memory must not have grown. The exit code is 1 if anything grew or any call failed
unexpectedly. The folder then holds samples.csv with one line a second, samples.png, and the service's log.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from load import OUTCOMES, STALL_SECONDS, Load
from watch import Sample, Watch

from support.faults import LONG_RETRY_AFTER_SECONDS, RETRY_AFTER_SECONDS

ROOT = Path(__file__).parents[3]
LIMIT_SECONDS = 2.0
SETTINGS = (
    "--listen=127.0.0.1:0",
    "--metrics-listen=127.0.0.1:0",
    # A faulty call must fail soon, so that there are many; a sound one must not fail on a busy machine.
    f"--upstream.first-chunk-timeout-seconds={LIMIT_SECONDS}",
    f"--upstream.chunk-gap-timeout-seconds={LIMIT_SECONDS}",
    "--upstream.initial-backoff-seconds=0.01",
    "--upstream.max-backoff-seconds=0.05",
    f"--upstream.max-retry-after-seconds={(RETRY_AFTER_SECONDS + LONG_RETRY_AFTER_SECONDS) / 2}",
    "--upstream.max-event-bytes=65536",
    "--upstream.max-response-bytes=262144",
    "--drain.delay-seconds=0",
    "--log.format=json",
)
START_SECONDS = STOP_SECONDS = 20.0

WARM_UP_SECONDS = 10.0
"""By then every fault has occurred, so that all code is loaded and all metrics have their labels."""
SETTLING_SHARE = 0.15
"""Share of the load that is ignored while pools and buffers reach their size."""
ALLOWED_MIB = 4.0
"""Growth of resident memory under load. In ten minutes of cancels gRPC leaks almost 2 MiB, some 80 bytes for each of
them (grpc/grpc#43360), and malloc's fragments need room. A `Call` kept of each call exceeds it within one minute."""
LEFT_BEHIND = {
    "tasks": 0,
    "in_flight": 0,
    "descriptors": 0,
    "caller_connections": 0,
    "upstream_connections": 0,
    "threads": 4,  # gRPC starts more in its pool when a busy machine keeps it waiting
}
"""Permitted excess over the first quiet state in the quiet state after the load."""
EXPLAINED = (
    "upstream rejected the service's API key",  # the fault 401
    "ExecuteBatchError raised in core",  # gRPC's own last message met a cancel
)
"""Errors in the service's log that are expected."""
SHOWN_LINES = 20

Judgement = tuple[str, bool, str]
"""The subject, whether it is good, and the figures."""


def _report(otherwise: str, judgements: Iterable[Judgement]) -> bool:
    """Print each with `ok` or the other word; return whether all are good."""
    good = True
    for what, holds, figures in judgements:
        print(f"{'ok' if holds else otherwise:5}  {what:20}  {figures}")
        good &= holds
    return good


def _growth(samples: Sequence[Sample], before: Sample, after: Sample) -> Iterator[Judgement]:
    """Yield the checks that nothing exceeds its value before or early in the load."""
    for what, allowed in LEFT_BEHIND.items():
        then, now = before[what], after[what]
        yield what.replace("_", " "), now <= then + allowed, f"{then:g} before the load, {now:g} after it"
    load = [sample for sample in samples if sample["phase"] == "load"]
    load = load[int(len(load) * SETTLING_SHARE) :]
    quarter = len(load) // 4
    early, late = (
        statistics.median(sample["rss_mib"] for sample in part) for part in (load[:quarter], load[-quarter:])
    )
    figures = f"median of the first quarter {early:.1f} MiB, of the last {late:.1f}: {ALLOWED_MIB:g} more allowed"
    yield "resident memory", late - early <= ALLOWED_MIB, figures
    grown = _slope(load) * (load[-1]["seconds"] - load[0]["seconds"])
    calls = load[-1]["handled"] - load[0]["handled"]
    figures = (
        f"{grown:+.1f} MiB by Theil-Sen, {grown * (1 << 20) / calls:.0f} bytes a call: {ALLOWED_MIB:g} MiB allowed"
    )
    yield "its slope", grown <= ALLOWED_MIB, figures


def _slope(samples: Sequence[Sample]) -> float:
    """Return MiB per second by Theil and Sen: the median slope of all pairs, which outliers hardly affect."""
    return statistics.median(
        (b["rss_mib"] - a["rss_mib"]) / (b["seconds"] - a["seconds"]) for a, b in combinations(samples, 2)
    )


def _mistakes(log: Path) -> list[str]:
    """Return lines of the service's log that no fault explains: errors, and lines that are not log lines."""
    return [
        line
        for line in log.read_text().splitlines()
        if not line.startswith("{") or ('"level":"error"' in line and not any(text in line for text in EXPLAINED))
    ]


@contextmanager
def _process(*command: str | Path, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """Run the command; on exit kill it if it still runs."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("CHATRPC_", "OPENAI_"))}
    # In a separate session, because Ctrl-C is for this process, which stops the others.
    process = subprocess.Popen(command, text=True, cwd=ROOT, env=environ, start_new_session=True, **streams)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _serving(service: subprocess.Popen[str], log: Path) -> dict[str, str]:
    """Return the service's log line of the start."""
    end = time.monotonic() + START_SECONDS
    while service.poll() is None and time.monotonic() < end:
        for line in log.read_text().splitlines():
            if '"event":"serving"' in line:
                return dict(json.loads(line))
        time.sleep(0.05)
    raise SystemExit(f"the service has not started:\n{log.read_text()}")


def _stopped(service: subprocess.Popen[str]) -> int | None:
    """Stop the service with SIGTERM; return its exit code, None if it still runs."""
    service.terminate()
    with suppress(subprocess.TimeoutExpired):
        service.wait(STOP_SECONDS)
    return service.returncode


async def _soak(watch: Watch, load: Load, seconds: float) -> tuple[Sample, Sample]:
    """Run warm-up and load; return the quiet states before and after the load."""
    async with watch.sampling():
        async with load.running():
            await asyncio.sleep(WARM_UP_SECONDS)
            watch.phase = "quiet"
        before = await watch.quiet()
        watch.phase = "load"
        async with load.running():
            await asyncio.sleep(seconds)
            watch.phase = "quiet"
        return before, await watch.quiet()


def main() -> int:
    """Return the exit code."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    table, log = args.out / "samples.csv", args.out / "service.log"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    program = Path(sys.executable).with_name("chatrpc-server")
    with (
        _process(sys.executable, "-m", "support.faults", stdout=subprocess.PIPE) as upstream,
        table.open("w", newline="", buffering=1) as table_file,
        log.open("w") as log_file,
    ):
        assert upstream.stdout
        base_url = upstream.stdout.readline().strip()
        with _process(program, "serve", f"--upstream.base-url={base_url}", *SETTINGS, stderr=log_file) as service:
            serving = _serving(service, log)
            load = Load(serving["listen"], random.Random(args.seed))
            watch = Watch(service.pid, serving, load, table_file)
            print(f"Soaking for {args.seconds:g} s, and up to a minute before and after ...")
            before, after = asyncio.run(_soak(watch, load, args.seconds))
            exit_code = _stopped(service)
    plot = "tests/robustness/soak/plot.py"
    subprocess.run([args.plot_with, plot, table, table.with_suffix(".png")], cwd=ROOT, check=True)

    stall = max(late["seconds"] - early["seconds"] for early, late in pairwise(watch.samples)) - 1
    if stall > STALL_SECONDS:
        print(f"This machine stalled for {stall:.1f} s: deadlines that expired meanwhile are not counted as wrong.")
    mistakes = _mistakes(log)
    for line in mistakes[:SHOWN_LINES]:
        print(line)
    flat = _report("GREW", _growth(watch.samples, before, after))
    right = _report(
        "WRONG",
        [
            (
                "counts",
                after["started"] == after["handled"],
                f"{after['started']:g} calls started, {after['handled']:g} handled",
            ),
            ("outcomes", after["wrong"] == 0, ", ".join(f"{load.outcomes[name]} {name}" for name in OUTCOMES)),
            ("log", not mistakes, f"{len(mistakes)} lines that no fault explains"),
            ("exit", exit_code == 0, f"code {exit_code} after SIGTERM"),
        ],
    )
    return 0 if flat and right else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, required=True, help="duration of the load")
    parser.add_argument("--out", type=Path, default=ROOT / "build/soak", help="folder of the results")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random numbers; default: %(default)s")
    parser.add_argument("--plot-with", required=True, metavar="PYTHON", help="an interpreter that has matplotlib")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
