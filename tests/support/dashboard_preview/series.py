"""The series of a panel: Prometheus's response to its queries, with Grafana's variables filled in."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deploy.prometheus.live import ROOT, Prometheus

DASHBOARD = json.loads((ROOT / "deploy/helm/chatrpc/files/dashboard.json").read_text())
COLOURS = {
    "green": "#73BF69", "yellow": "#FADE2A", "orange": "#FF9830", "red": "#F2495C", "dark-red": "#C4162A",
    "blue": "#5794F2", "light-blue": "#8AB8FF", "purple": "#B877D9",
}  # fmt: skip
_PALETTE = (
    "#73BF69", "#F2CC0C", "#8AB8FF", "#FF780A", "#F2495C", "#5794F2", "#B877D9", "#CA95E5", "#37872D", "#FADE2A",
    "#447EBC", "#C15C17", "#890F02", "#0A437C", "#6D1F62", "#584477",
)  # fmt: skip


@dataclass(frozen=True)
class Window:
    """The time range of the picture, in seconds since the epoch, and the distance of its points in seconds."""

    start: float
    end: float
    step: float = 2


@dataclass(frozen=True)
class Series:
    """One line of a panel. `points` are times and finite values."""

    name: str
    colour: str
    points: list[tuple[float, float]]

    @property
    def last(self) -> float:
        """The last value; NaN without one."""
        return self.points[-1][1] if self.points else math.nan

    @property
    def highest(self) -> float:
        """The highest value; NaN without one."""
        return max((value for _, value in self.points), default=math.nan)


def series(panel: Mapping[str, Any], prometheus: Prometheus, window: Window) -> list[Series]:
    """Return all series of a panel, with Grafana's names and colours."""
    overrides = panel["fieldConfig"]["overrides"]
    found = [each for target in panel["targets"] for each in _ask(target, prometheus, window)]
    return [
        Series(name, _colour(name, number, overrides), [point for point in points if math.isfinite(point[1])])
        for number, (name, points) in enumerate(found)
    ]


def _ask(
    target: Mapping[str, Any], prometheus: Prometheus, window: Window
) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    query = target["expr"].replace("$__rate_interval", "20s").replace("$__range", f"{window.end - window.start:.0f}s")
    for variable in DASHBOARD["templating"]["list"]:
        query = query.replace(f"${variable['name']}", variable["query"] if variable["type"] == "textbox" else ".*")
    if target["instant"]:
        result = prometheus.query(query, window.end)
    else:
        result = prometheus.query_range(query, window.start, window.end, window.step)
    for one in result:
        name = re.sub(r"\{\{(\w+)\}\}", lambda label, one=one: one["metric"].get(label[1], ""), target["legendFormat"])
        yield name, [(float(time), float(value)) for time, value in one.get("values") or [one["value"]]]


def _colour(name: str, number: int, overrides: list[Mapping[str, Any]]) -> str:
    named = [
        override["properties"][0]["value"]["fixedColor"]
        for override in overrides
        if re.search(override["matcher"]["options"].strip("/"), name)
    ]
    return COLOURS[named[-1]] if named else _PALETTE[number % len(_PALETTE)]
