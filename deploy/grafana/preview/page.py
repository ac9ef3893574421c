"""The page around the panels: Grafana's grid and its dark look, in one file that needs nothing else."""

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

import panels
from data import Source

WIDTH = 1600
"""Of the page, in pixels: charts are drawn to the pixel, so that no text is stretched."""
_MARGIN, _COLUMNS, _TOP = 16, 24, 88

_STYLE = """
* { box-sizing: border-box }
body { margin: 0; background: #111217; color: #ccccdc; font: 13px/1.3 Inter, "Helvetica Neue", Arial, sans-serif }
main { position: relative; width: 1600px; margin: 0 auto }
header { padding: 14px 16px 0 }
header h1 { font-size: 18px; font-weight: 500; margin: 0 0 10px; color: #fff }
header small { color: #9fa1aa; font-size: 13px; margin-left: 12px }
.variable { display: inline-block; border: 1px solid #2e3036; border-radius: 2px; margin-right: 8px; font-size: 12px }
.variable b { display: inline-block; padding: 5px 8px; background: #22252b; font-weight: 500 }
.variable span { display: inline-block; padding: 5px 10px; background: #111217 }
.at { position: absolute }
h2 { margin: 0; font-size: 15px; font-weight: 500; line-height: 30px; color: #e6e6ee }
h2::before { content: "⌄"; margin-right: 8px; color: #9fa1aa }
.panel { position: relative; background: #181b1f; border: 1px solid #25282e; border-radius: 2px; padding: 0 7px }
h3 { margin: 0; font-size: 13.5px; font-weight: 500; line-height: 31px; height: 31px; white-space: nowrap }
.info { position: relative; display: inline-block; width: 14px; height: 14px; margin-left: 4px; border-radius: 50%;
  border: 1px solid #6e7079; color: #9fa1aa; font: italic 10px/12px Georgia, serif; text-align: center; cursor: help }
.tip { display: none; position: absolute; z-index: 9; top: 18px; left: -60px; width: 320px; padding: 10px 12px;
  background: #22252b; border: 1px solid #3a3d44; border-radius: 2px; color: #ccccdc; white-space: normal;
  font: 12.5px/1.45 Inter, "Helvetica Neue", Arial, sans-serif; text-align: left }
.info:hover .tip { display: block }
.east .tip { left: auto; right: -16px }
.none { display: flex; align-items: center; justify-content: center; color: #9fa1aa; font-size: 16px }
svg { display: block }
svg text { font: 11.5px Inter, "Helvetica Neue", Arial, sans-serif }
.tiles { display: flex; margin: 0 -7px }
.tile { position: relative; display: flex; flex-direction: column; align-items: center; justify-content: center;
  overflow: hidden }
.tile + .tile { border-left: 1px solid #181b1f }
.tile .name { position: absolute; top: 5px; font-size: 12px; opacity: 0.9 }
.tile .value { font-weight: 500; z-index: 1; white-space: nowrap; margin-top: -12px; padding-top: 8px }
.tile svg { position: absolute; bottom: 0; left: 0 }
.entry { display: flex; height: 18px; line-height: 18px; font-size: 12px; padding: 0 6px }
.entry .name, .entry span:first-child { flex: 1; overflow: hidden; white-space: nowrap; text-overflow: ellipsis }
.entry i { display: inline-block; width: 14px; height: 4px; border-radius: 1px; margin: 0 8px 3px 0 }
.entry b { font-weight: 400; width: 84px; text-align: right; white-space: nowrap }
.entry.head { color: #6e9fff; font-size: 11.5px }
.list { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); column-gap: 4px }
.list .entry b { width: auto; margin-left: 6px }
.heat { display: flex; align-items: center; justify-content: flex-end; font-size: 11.5px; color: #9fa1aa; height: 18px }
.heat i { width: 9px; height: 9px } .heat i:first-child { margin-left: 6px } .heat i:last-of-type { margin-right: 6px }
.scroll { overflow-y: auto }
table { width: 100%; border-collapse: collapse; font-size: 12.5px }
th { text-align: left; color: #6e9fff; font-weight: 500; padding: 3px 8px; border-bottom: 1px solid #2e3036 }
td { padding: 2.5px 8px; border-bottom: 1px solid #202329 }
.number { text-align: right }
"""


def page(dashboard: Mapping[str, Any], source: Source) -> str:
    """The whole document."""
    parts, bottom = [], 0
    unit = (WIDTH - 2 * _MARGIN + panels.GAP) / _COLUMNS
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        left, top = _MARGIN + grid["x"] * unit, _TOP + grid["y"] * panels.CELL
        width = grid["w"] * unit - panels.GAP
        drawn = f"<h2>{escape(panel['title'])}</h2>" if panel["type"] == "row" else panels.draw(panel, source, width)
        east = " east" if grid["x"] >= 2 * _COLUMNS / 3 else ""  # there is no room for its description on the right
        parts.append(f'<div class="at{east}" style="left:{left:.0f}px;top:{top}px">{drawn}</div>')
        bottom = max(bottom, top + grid["h"] * panels.CELL)
    title = escape(dashboard["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f'<main style="height:{bottom + _MARGIN}px"><header><h1>{title}<small>{_range(source)}</small></h1>'
        f"{_variables(dashboard)}</header>{''.join(parts)}</main></html>\n"
    )


def _range(source: Source) -> str:
    start, end = (
        datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S") for time in (source.start, source.end)
    )
    return f"{start} to {end[11:]} UTC"


def _variables(dashboard: Mapping[str, Any]) -> str:
    shown = []
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "datasource":
            value = variable["query"] if variable["type"] == "textbox" else "All"
            shown.append(
                f'<span class="variable"><b>{escape(variable["label"])}</b><span>{escape(value)}</span></span>'
            )
    return "".join(shown)
