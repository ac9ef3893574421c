"""Panels as rows/ describes them; generate.py makes Grafana's JSON of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["stat", "lines", "bars", "heatmap", "table"]
Steps = tuple[tuple[float | None, str], ...]
"""Lowest value of each colour; the first step has no value."""

NEUTRAL: Steps = ((None, "blue"),)
"""For values that are neither good nor bad."""

QUANTILES = {"p50": "green", "p95": "yellow", "p99": "orange"}
"""Colours of quantiles in panels with one set of them."""


def high(warn: float, alarm: float) -> Steps:
    """Return steps for a value that is bad when high."""
    return ((None, "green"), (warn, "orange"), (alarm, "red"))


def low(warn: float, alarm: float) -> Steps:
    """Return steps for a value that is bad when low: green from `warn`, red under `alarm`."""
    return ((None, "red"), (alarm, "orange"), (warn, "green"))


@dataclass(frozen=True)
class Panel:
    """One panel. `shows` (the content) and `bad` (the values that are bad, and why) become its description."""

    title: str
    shows: str
    bad: str
    unit: str
    """Grafana's name of the unit: s, reqps, percentunit, bytes, short ..."""
    queries: Mapping[str, str]
    """PromQL by legend."""
    kind: Kind = "lines"
    steps: Steps = NEUTRAL
    width: int = 8
    """In columns; a row has 24."""
    height: int = 9
    """In Grafana's cells of 38 pixels each."""
    none: str = ""
    """Text for an empty result that is no fault of the monitoring."""
    none_colour: str = "blue"
    """Colour of a stat with an empty result; blue because no traffic is neither good nor bad."""
    instant: bool = False
    """Query only the present value, for queries over the whole time range."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Titles of a table's columns, in order."""
    colours: Mapping[str, str] = field(default_factory=dict)
    """Colour of series, by a regular expression for their legends; the others get the palette's next colour."""
    decimals: int | None = None
