"""What a panel is, before it is Grafana's JSON: the words in which rows/ is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["stat", "lines", "bars", "heatmap", "table"]
Steps = tuple[tuple[float | None, str], ...]
"""From which value on a panel has which colour; the first step has no value."""

NEUTRAL: Steps = ((None, "blue"),)
"""For what is neither good nor bad."""

QUANTILES = {"p50": "green", "p95": "yellow", "p99": "orange"}
"""Colours of the three, wherever they stand alone."""


def high(warn: float, alarm: float) -> Steps:
    """Bad when high."""
    return ((None, "green"), (warn, "orange"), (alarm, "red"))


def low(warn: float, alarm: float) -> Steps:
    """Bad when low: fine from `warn` on, red under `alarm`."""
    return ((None, "red"), (alarm, "orange"), (warn, "green"))


@dataclass(frozen=True)
class Panel:
    """One panel. `shows` and `bad` become its description: what it shows, and what of it is bad."""

    title: str
    shows: str
    bad: str
    unit: str
    """By Grafana's name: s, reqps, percentunit, bytes, short ..."""
    queries: Mapping[str, str]
    """PromQL by legend."""
    kind: Kind = "lines"
    steps: Steps = NEUTRAL
    width: int = 8
    """Of 24."""
    height: int = 9
    """In Grafana's cells of 38 pixels."""
    none: str = ""
    """What an empty result means, where that is not a fault of the monitoring."""
    none_colour: str = "blue"
    """Of a stat then: no traffic is neither good nor bad."""
    instant: bool = False
    """Asks for the present value alone: for queries over the whole time range."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Titles of a table's columns, in their order."""
    colours: Mapping[str, str] = field(default_factory=dict)
    """Of series, by a regular expression for their legends; the others take what comes."""
    decimals: int | None = None
