"""Panels as HTML: a stat, a chart with its legend, a heatmap, a table."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import charts
import colours
import units
from data import Series, Source

CELL, GAP = 38, 8
"""Grafana's: a grid cell's height with its gap, in pixels."""
_TITLE, _PADDING, _LEGEND_ROW, _LEAST_CHART = 32, 8, 18, 110
Panel = Mapping[str, Any]


def draw(panel: Panel, source: Source, width: float) -> str:
    """The panel with its frame, so many pixels wide."""
    height = panel["gridPos"]["h"] * CELL - GAP
    try:
        series = [one for target in panel["targets"] for one in source.ask(target)]
        colours.give(series, panel["fieldConfig"]["overrides"])
        size = (width - 2 * _PADDING, height - _TITLE - _PADDING)
        if not series and panel["type"] == "stat":
            series = [Series("", {}, [])]
        body = _KINDS[panel["type"]](panel, series, source, size) if series else _nothing(panel, size)
    except ValueError as error:
        body = f'<div class="none">{escape(str(error))}</div>'
    description = escape(panel["description"]).replace("\n\n**Bad:** ", "<br><br><b>Bad:</b> ")
    return (
        f'<section class="panel {panel["type"]}" style="width:{width:.0f}px;height:{height}px">'
        f'<h3>{escape(panel["title"])} <span class="info">i<span class="tip">{description}</span></span></h3>'
        f"{body}</section>"
    )


def _nothing(panel: Panel, size: tuple[float, float]) -> str:
    said = escape(panel["fieldConfig"]["defaults"].get("noValue", "No data"))
    return f'<div class="none" style="height:{size[1]:.0f}px">{said}</div>'


def _colour_of_none(field: Mapping[str, Any]) -> str:
    """As the field's mapping of what is no number says, else that of the lowest values."""
    mapped = [mapping["options"]["result"]["color"] for mapping in field.get("mappings", [])]
    return str((mapped or [field["thresholds"]["steps"][0]["color"]])[0])


def _background(colour: str) -> str:
    dark, bright = colours.BEHIND_STAT[colour]
    return f"background:linear-gradient(120deg,{dark},{bright});color:#fff;"


def _stat(panel: Panel, series: Sequence[Series], _: Source, size: tuple[float, float]) -> str:
    field, spark = panel["fieldConfig"]["defaults"], panel["options"]["graphMode"] == "area"
    width, height = (size[0] + 2 * _PADDING - 2) / len(series), size[1] + _PADDING - 1
    tiles = []
    for one in series:
        value = one.last
        steps = field["thresholds"]["steps"]
        colour = [step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]
        written = units.text(value, field["unit"], field.get("decimals"))
        if math.isnan(value):
            written, colour = field.get("noValue", "No data"), _colour_of_none(field)
        named = panel["options"]["textMode"] == "value_and_name"
        name = f'<div class="name">{escape(one.name)}</div>' if named else ""
        letters = min(56.0, height * 0.38, width / max(4, len(written)) * 1.45)
        line = charts.sparkline(one.points, (width, height * 0.34)) if spark else ""
        tiles.append(
            f'<div class="tile" style="width:{width:.1f}px;height:{height:.0f}px;{_background(colour)}">{name}'
            f'<div class="value" style="font-size:{letters:.0f}px">{escape(written)}</div>{line}</div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _chart(panel: Panel, series: Sequence[Series], source: Source, size: tuple[float, float]) -> str:
    field = panel["fieldConfig"]["defaults"]
    in_rows = (len(series) + 1) * _LEGEND_ROW <= size[1] - _LEAST_CHART
    rows = len(series) + 1 if in_rows else math.ceil(len(series) / 2)
    chart = (size[0], size[1] - rows * _LEGEND_ROW - 4)
    if field["custom"]["drawStyle"] == "bars":
        drawn = charts.bars(series, chart, (source.start, source.end), field["unit"], source.step)
    else:
        steps = [(step["value"], step["color"]) for step in field["thresholds"]["steps"] if step["value"] is not None]
        shown = steps if field["custom"]["thresholdsStyle"]["mode"] == "dashed" else []
        drawn = charts.lines(
            series, chart, (source.start, source.end), field["unit"], shown, field["custom"]["fillOpacity"] / 100
        )
    return drawn + _legend(series, field["unit"], in_rows=in_rows)


def _legend(series: Sequence[Series], unit: str, *, in_rows: bool) -> str:
    entries = []
    for one in series:
        mark = f'<i style="background:{one.colour}"></i>'
        name = f'<span class="name">{mark}{escape(one.name)}</span>'
        last = units.text(one.last, unit)
        entries.append((name, last, units.text(one.highest, unit)))
    if not in_rows:
        items = "".join(f'<div class="entry">{name}<b>{last}</b></div>' for name, last, _ in entries)
        return f'<div class="list">{items}</div>'
    lines = "".join(f'<div class="entry">{name}<b>{last}</b><b>{highest}</b></div>' for name, last, highest in entries)
    return f'<div class="legend"><div class="entry head"><span>Name</span><b>Last *</b><b>Max</b></div>{lines}</div>'


def _heatmap(panel: Panel, series: Sequence[Series], source: Source, size: tuple[float, float]) -> str:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    drawn = charts.heatmap(series, (size[0], size[1] - 20), (source.start, source.end), unit, source.step)
    shades = "".join(f'<i style="background:{charts.heat(share / 20)}"></i>' for share in range(21))
    return f'{drawn}<div class="heat">few {shades} many</div>'


def _table(panel: Panel, series: Sequence[Series], _: Source, size: tuple[float, float]) -> str:
    organize = panel["transformations"][0]["options"]
    names, unit = organize["renameByName"], panel["fieldConfig"]["defaults"]["unit"]
    known = dict.fromkeys(key for one in series for key in one.labels)
    columns = sorted(known, key=lambda column: organize["indexByName"].get(column, len(known)))
    head = "".join(f"<th>{escape(names.get(column, column))}</th>" for column in columns)
    rows = []
    for one in sorted(series, key=lambda one: -one.last):
        cells = "".join(f"<td>{escape(one.labels.get(column, ''))}</td>" for column in columns)
        rows.append(f'<tr>{cells}<td class="number">{units.text(one.last, unit)}</td></tr>')
    value = f'<th class="number">{escape(names.get("Value", "Value"))}</th>'
    table = f"<table><tr>{head}{value}</tr>{''.join(rows)}</table>"
    return f'<div style="max-height:{size[1]:.0f}px" class="scroll">{table}</div>'


_KINDS = {"stat": _stat, "timeseries": _chart, "heatmap": _heatmap, "table": _table}
