"""Draws the samples of a soak: plot.py samples.csv samples.png"""

import csv
import sys
from itertools import groupby

import matplotlib.pyplot as plt

OUTCOMES = {
    "ok": ("ok", "tab:green"),
    "cancelled": ("cancelled", "tab:blue"),
    "faulty": ("faulty as documented", "tab:orange"),
    "deadline": ("deadline passed", "tab:purple"),
    "wrong": ("wrong", "red"),
}
RATE_SAMPLES = 5
"""Samples per rate, because the rate of one interval is mostly noise."""


def main(table: str, image: str) -> None:
    """Draw small multiples over one time axis, grey without load."""
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    column = {name: [float(row[name]) for row in rows] for name in rows[0] if name != "phase"}
    seconds = column["seconds"]

    plt.rcParams.update({"font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold", "lines.linewidth": 1.3})
    figure, axes = plt.subplots(5, sharex=True, figsize=(12, 14), dpi=100, layout="constrained")
    memory, calls, descriptors, connections, outcomes = axes
    figure.suptitle(
        f"The service under mixed load: {sum(column[name][-1] for name in OUTCOMES):.0f} calls", fontsize=14
    )

    memory.set_title("Resident memory (MiB)", loc="left")
    memory.plot(seconds, column["rss_mib"], color="tab:red")
    # Not from zero, which would hide some MiB; with some room, so that noise does not look like a leak.
    memory.set_ylim(min(column["rss_mib"]) - 3, max(column["rss_mib"]) + 3)

    for axis, title, lines in (
        (calls, "Asyncio tasks and calls in flight", {"tasks": "tasks", "in_flight": "calls in flight"}),
        (descriptors, "File descriptors and threads", {"descriptors": "descriptors", "threads": "threads"}),
        (
            connections,
            "TCP connections",
            {"upstream_connections": "to the upstream", "caller_connections": "from callers"},
        ),
    ):
        axis.set_title(title, loc="left")
        for name, label in lines.items():
            axis.plot(seconds, column[name], label=label)

    outcomes.set_title(f"Calls ended per second, by outcome (over {RATE_SAMPLES} s)", loc="left")
    for name, (label, color) in OUTCOMES.items():
        spans = list(zip(column[name], column[name][RATE_SAMPLES:], seconds, seconds[RATE_SAMPLES:], strict=False))
        rates = [(late - early) / (end - start) for early, late, start, end in spans]
        outcomes.plot([(start + end) / 2 for *_, start, end in spans], rates, label=label, color=color)
    outcomes.set_xlabel("seconds since the service started; grey: no load")

    for axis in axes:
        for phase, part in groupby(rows, lambda row: row["phase"]):
            if phase == "quiet":
                span = [float(row["seconds"]) for row in part]
                axis.axvspan(span[0], span[-1], color="0.95", zorder=0)
        axis.grid(color="0.88")
        axis.set_axisbelow(True)
        axis.set_xlim(0, seconds[-1])
        axis.spines[["top", "right"]].set_visible(False)
        if axis is not memory:
            axis.set_ylim(bottom=0)
            axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(image)


if __name__ == "__main__":
    main(*sys.argv[1:])
