"""Grafana's colours: by name, those that it gives to series in turn, and those behind a stat."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data import Series

NAMED = {
    "green": "#73BF69", "yellow": "#FADE2A", "orange": "#FF9830", "red": "#F2495C", "dark-red": "#C4162A",
    "blue": "#5794F2", "light-blue": "#8AB8FF", "purple": "#B877D9",
}  # fmt: skip
BEHIND_STAT = {
    "green": ("#1f6b33", "#2f8f47"),
    "orange": ("#b3590a", "#d97a1e"),
    "red": ("#a3212f", "#cf3f45"),
    "blue": ("#1f4b99", "#3469c4"),
}
"""From and to, of a gradient."""
_PALETTE = (
    "#73BF69", "#F2CC0C", "#8AB8FF", "#FF780A", "#F2495C", "#5794F2", "#B877D9", "#CA95E5", "#37872D", "#FADE2A",
    "#447EBC", "#C15C17", "#890F02", "#0A437C", "#6D1F62", "#584477",
)  # fmt: skip


def give(series: Sequence[Series], overrides: Sequence[Mapping[str, Any]]) -> None:
    """To each its colour: of the last override that its name matches, else the next of the palette."""
    for number, one in enumerate(series):
        one.colour = _PALETTE[number % len(_PALETTE)]
        for override in overrides:
            if re.search(override["matcher"]["options"].strip("/"), one.name):
                one.colour = NAMED[override["properties"][0]["value"]["fixedColor"]]
