"""The page: the dashboard's first two rows as HTML, drawn to the pixel."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from deploy.prometheus.live import Prometheus
from support.dashboard_preview import charts, units
from support.dashboard_preview.series import DASHBOARD, Series, Window, series

Panel = Mapping[str, Any]
WIDTH = 1600
_MARGIN, _TOP, _CELL, _GAP = 16, 88, 38, 8
"""Pixels. A cell is Grafana's, with its gap."""
_COLUMN = (WIDTH - 2 * _MARGIN + _GAP) / 24
_TITLE, _PADDING, _LEGEND_ROW, _LEAST_CHART = 32, 8, 18, 110
_THIRD_ROW = [panel["gridPos"]["y"] for panel in DASHBOARD["panels"] if panel["type"] == "row"][2]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["gridPos"]["y"] < _THIRD_ROW]
HEIGHT = _TOP + _THIRD_ROW * _CELL + 2
_BEHIND = {"green": "#2f8f47", "orange": "#d97a1e", "red": "#cf3f45", "blue": "#3469c4"}
"""Colours behind a stat, without Grafana's gradients because these enlarge the picture."""
_STYLE = """
* { box-sizing: border-box }
body { margin: 0; background: #111217; color: #ccccdc; font: 13px/1.3 Inter, "DejaVu Sans", Arial, sans-serif }
header { padding: 14px 16px 0 }
h1 { font-size: 18px; font-weight: 500; margin: 0 0 10px; color: #fff }
h1 small { color: #9fa1aa; font-size: 13px; margin-left: 12px }
.variable { display: inline-block; border: 1px solid #2e3036; border-radius: 2px; margin-right: 8px; font-size: 12px }
.variable * { display: inline-block; padding: 5px 8px; background: #22252b; font-weight: 500 }
.variable span { background: #111217 }
.at { position: absolute }
h2 { margin: 0; font-size: 15px; font-weight: 500; line-height: 30px; color: #e6e6ee }
.panel { background: #181b1f; border: 1px solid #25282e; border-radius: 2px; padding: 0 7px }
h3 { margin: 0; font-size: 13.5px; font-weight: 500; line-height: 31px; height: 31px; white-space: nowrap }
.none { text-align: center; color: #9fa1aa; font-size: 16px; padding-top: 40px }
svg { display: block; font-size: 11.5px }
.tiles { display: flex; margin: 0 -7px }
.tile { position: relative; color: #fff; text-align: center; white-space: nowrap; font-size: 12px }
.tile b { display: block; font-weight: 500; line-height: 1.2 }
.tile svg { position: absolute; bottom: 0; left: 0 }
.entry { display: flex; height: 18px; line-height: 18px; font-size: 12px; padding: 0 6px }
.entry span { flex: 1; overflow: hidden; white-space: nowrap }
.entry i { display: inline-block; width: 14px; height: 4px; border-radius: 1px; margin: 0 8px 3px 0 }
.entry b { font-weight: 400; width: 84px; text-align: right; white-space: nowrap }
.head { color: #6e9fff; font-size: 11.5px }
.list { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); column-gap: 4px }
"""


def draw(prometheus: Prometheus, seconds: float) -> str:
    """Return the page of the last so many seconds."""
    now = time.time()
    window = Window(now - seconds, now)
    start, end = (datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S") for at in (now - seconds, now))
    variables = "".join(
        f'<div class="variable"><b>{escape(variable["label"])}</b>'
        f"<span>{variable['query'] if variable['type'] == 'textbox' else 'All'}</span></div>"
        for variable in DASHBOARD["templating"]["list"]
        if variable["type"] != "datasource"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>chatrpc</title><style>{_STYLE}</style>'
        f"<header><h1>chatrpc<small>{start} to {end[11:]} UTC</small></h1>{variables}</header>"
        f"{''.join(_placed(prometheus, window))}</html>\n"
    )


def _placed(prometheus: Prometheus, window: Window) -> Iterator[str]:
    for panel in PANELS:
        grid = panel["gridPos"]
        left, top = _MARGIN + grid["x"] * _COLUMN, _TOP + grid["y"] * _CELL
        width, height = grid["w"] * _COLUMN - _GAP, grid["h"] * _CELL - _GAP
        if panel["type"] == "row":
            body = f"<h2>{escape(panel['title'])}</h2>"
        else:
            size = (width - 2 * _PADDING, height - _TITLE - _PADDING)
            kind = {"stat": _stat, "timeseries": _chart}[panel["type"]]
            body = (
                f'<div class="panel" style="width:{width:.0f}px;height:{height}px"><h3>{escape(panel["title"])}</h3>'
                f"{kind(panel, series(panel, prometheus, window), window, size)}</div>"
            )
        yield f'<div class="at" style="left:{left:.0f}px;top:{top}px">{body}</div>'


def _stat(panel: Panel, found: Sequence[Series], _: Window, size: charts.Size) -> str:
    field = panel["fieldConfig"]["defaults"]
    found = found or [Series("", "", [])]
    width, height = (size[0] + 2 * _PADDING - 2) / len(found), size[1] + _PADDING - 1
    tiles = []
    for one in found:
        steps = [step for step in field["thresholds"]["steps"] if step["value"] is None or one.last >= step["value"]]
        colour, written = steps[-1]["color"], units.text(one.last, field["unit"], field.get("decimals"))
        if math.isnan(one.last):
            result = field["mappings"][0]["options"]["result"]
            colour, written = result["color"], f'<span class="none">{result["text"]}</span>'
        name = one.name if panel["options"]["textMode"] == "value_and_name" else ""
        tiles.append(
            f'<div class="tile" style="width:{width:.1f}px;height:{height:.0f}px;'
            f'background:{_BEHIND[colour]}">{escape(name) or "&nbsp;"}'
            f'<b style="font-size:{min(42, width / 5):.0f}px">{written}</b>'
            f"{charts.sparkline(one, (width, height * 0.34))}</div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _chart(panel: Panel, found: Sequence[Series], window: Window, size: charts.Size) -> str:
    field = panel["fieldConfig"]["defaults"]
    if not found:
        return f'<div class="none">{escape(field["noValue"])}</div>'
    in_rows = (len(found) + 1) * _LEGEND_ROW <= size[1] - _LEAST_CHART
    rows = len(found) + 1 if in_rows else math.ceil(len(found) / 2)
    chart = (size[0], size[1] - rows * _LEGEND_ROW - 4)
    if field["custom"]["drawStyle"] == "bars":
        drawn = charts.bars(found, chart, window, field["unit"])
    else:
        limits = [(step["value"], step["color"]) for step in field["thresholds"]["steps"] if step["value"] is not None]
        drawn = charts.lines(found, chart, window, field["unit"], limits)
    return drawn + _legend(found, field["unit"], in_rows=in_rows)


def _legend(found: Sequence[Series], unit: str, *, in_rows: bool) -> str:
    entries = []
    for one in found:
        values = (one.last, one.highest) if in_rows else (one.last,)
        numbers = "".join(f"<b>{units.text(value, unit)}</b>" for value in values)
        mark = f'<i style="background:{one.colour}"></i>'
        entries.append(f'<div class="entry"><span>{mark}{escape(one.name)}</span>{numbers}</div>')
    head = '<div class="entry head"><span>Name</span><b>Last *</b><b>Max</b></div>'
    return (head if in_rows else "") + f'<div class="{"" if in_rows else "list"}">{"".join(entries)}</div>'
