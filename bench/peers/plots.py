"""Plots of a run as PNG and SVG: plots.py results.json folder. Requires requirements/plots.txt only."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, MaxNLocator

COLORS = {
    "chatrpc": "#c2410c",
    "chatrpc, a message per chunk": "#fb923c",
    "chatrpc, 2 workers": "#9a3412",
    "floor": "#64748b",
    "floor, 2 processes": "#94a3b8",
    "naive": "#a3a3a3",
    "LiteLLM": "#7c3aed",
    "Portkey": "#db2777",
    "smg": "#0f766e",
    "vllm-router": "#65a30d",
    "nginx": "#0ea5e9",
    "Envoy": "#1e3a8a",
    "Envoy transcoder": "#1e3a8a",
}
RIVALS = list(COLORS)[6:]
PACED = {50: "paced 50", 200: "paced 200", 1000: "paced 1000"}


def main(source: str, folder: str) -> None:
    servers = {name: one for name, one in json.loads(Path(source).read_text())["servers"].items() if name != "direct"}
    plt.rcParams.update({"font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold", "svg.hashsalt": "chatrpc"})
    for name, draw in {"throughput": throughput, "paced": paced, "memory": memory}.items():
        figure = draw(servers)
        if figure is not None:
            for kind in ("png", "svg"):
                figure.savefig(Path(folder) / f"{name}.{kind}", metadata={"Date": None} if kind == "svg" else None)


def throughput(servers: dict[str, Any]) -> Any:
    """Draw calls and chunks a second, longest bars first."""
    titles = {
        "unary": "unary calls/s",
        "66": "chunks/s, streams of 66",
        "400": "chunks/s, streams of 400",
    }
    figure, axes = plt.subplots(1, 3, figsize=(17, 4.8), dpi=110, layout="constrained")
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        rows = [(found, name) for name, one in servers.items() if (found := rates(one, key, "per_second"))]
        rows.sort(key=lambda row: statistics.median(row[0]))
        for place, (found, name) in enumerate(rows):
            value = statistics.median(found)
            axis.barh(place, value, color=COLORS[name])
            axis.plot([min(found), max(found)], [place, place], color="black", linewidth=1)
            axis.text(max(found), place, f" {value:,.0f}", va="center", fontsize=9)
        axis.set_yticks(range(len(rows)), [name for _, name in rows])
        axis.set_title(title, loc="left")
        axis.margins(x=0.2)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        clean(axis)
    figure.suptitle("Two cores for everything: server, callers and upstream. The line spans all rounds.", fontsize=10)
    return figure


def paced(servers: dict[str, Any]) -> Any:
    """Draw CPU of a chunk and jitter by the number of open streams."""
    figure, (cpu, jitter) = plt.subplots(1, 2, figsize=(13, 4.8), dpi=110, layout="constrained")
    for name, one in servers.items():
        points = [
            (streams, rates(one, key, "cpu_us"), rates(one, key, "jitter_ms", "p99")) for streams, key in PACED.items()
        ]
        points = [point for point in points if point[1]]
        if points:
            streams = [streams for streams, *_ in points]
            cpu.plot(streams, [statistics.median(found) for _, found, _ in points], **style(name))
            jitter.plot(streams, [statistics.median(found) for *_, found in points], **style(name))
    for axis, title in ((cpu, "CPU of a chunk, µs"), (jitter, "jitter of the gaps between messages, p99, ms")):
        axis.set_title(title, loc="left")
        axis.set_xscale("log")
        axis.set_xticks(list(PACED), [f"{streams:,}" for streams in PACED])
        axis.minorticks_off()
        plain_logarithm(axis)
        axis.set_xlabel("streams open, 50 chunks a second each")
        clean(axis)
    jitter.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def memory(servers: dict[str, Any]) -> Any:
    """Draw resident memory by the number of open streams."""
    keys = {0: "idle_mib", 1000: "mib_at_1000", 2000: "mib_at_2000"}
    figure, axis = plt.subplots(figsize=(9, 4.8), dpi=110, layout="constrained")
    drawn = False
    for name, one in servers.items():
        points = [(streams, one["held"][key]) for streams, key in keys.items() if key in one.get("held", {})]
        if len(points) > 1:
            drawn = True
            axis.plot(*zip(*points, strict=True), **style(name))
    axis.set_title("Resident memory, MiB", loc="left")
    axis.set_xticks(list(keys), [f"{streams:,}" for streams in keys])
    axis.set_xlabel("streams open")
    plain_logarithm(axis)
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    clean(axis)
    return figure if drawn else None


def rates(server: dict[str, Any], load: str, figure: str, part: str | None = None) -> list[float]:
    found = [turn.get(figure) for turn in server.get(load, [])]
    return [one[part] if part else one for one in found if one is not None]


def style(name: str) -> dict[str, Any]:
    return {"color": COLORS[name], "marker": "o", "label": name, "linewidth": 1.2 if name in RIVALS else 2}


def plain_logarithm(axis: Any) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def clean(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)


if __name__ == "__main__":
    main(*sys.argv[1:])
