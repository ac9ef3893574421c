"""Writes the Grafana dashboard from rows/, in the classic schema, which Grafana 10 to 13 import.

The file is in the chart because a chart can read only its own folder. With --check nothing is written, and a stale file
is an error.
"""

import json
import sys
from pathlib import Path
from typing import Any

from panel import Panel
from queries import SERVICE
from rows import methods, rollout, saturation, slo, streams, tokens, upstreams

OUTPUT = Path(__file__).parents[1] / "helm/chatrpc/files/dashboard.json"
ROWS = (slo, methods, streams, tokens, upstreams, saturation, rollout)
RUNBOOK = "https://github.com/chatrpc/chatrpc/blob/main/docs/runbook.md"
PRICES = {"input": "1", "cached": "0.5", "output": "4"}
"""Example prices of a million tokens, because real prices depend on the reader's contract."""

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_TYPES = {"lines": "timeseries", "bars": "timeseries"}
_COLUMNS = 24


def dashboard() -> dict[str, Any]:
    """Return the whole dashboard."""
    return {
        "uid": "chatrpc",
        "title": "chatrpc",
        "description": "gRPC in front of OpenAI-compatible chat completions: health, speed, upstreams, tokens.",
        "tags": ["chatrpc", "grpc", "llm"],
        "editable": True,
        "graphTooltip": 1,  # crosshair shared by all panels
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [{"title": "Runbook", "type": "link", "icon": "doc", "url": RUNBOOK, "targetBlank": True}],
        "templating": {"list": _variables()},
        "panels": _panels(),
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1},
        _query_variable("job", "label_values(chatrpc_build_info, job)"),
        _query_variable("instance", 'label_values(chatrpc_build_info{job=~"$job"}, instance)'),
        _query_variable("model", f"label_values(chatrpc_tokens_total{{{SERVICE}}}, gen_ai_request_model)"),
        _query_variable("upstream", f"label_values(chatrpc_upstream_requests_total{{{SERVICE}}}, upstream)"),
        *(_price_variable(kind, price) for kind, price in PRICES.items()),
    ]


def _query_variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # on each change of the time range
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _price_variable(kind: str, price: str) -> dict[str, Any]:
    return {
        "name": f"price_{kind}",
        "label": f"$ per 1M {kind} tokens",
        "type": "textbox",
        "query": price,
        "current": {"selected": True, "text": price, "value": price},
    }


def _panels() -> list[dict[str, Any]]:
    """Return rows and panels in one list, as the schema requires; placed from left to right, line by line."""
    made: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        grid = {"h": 1, "w": _COLUMNS, "x": 0, "y": y}
        made.append({"id": len(made) + 1, "type": "row", "title": row.TITLE, "collapsed": False, "gridPos": grid})
        y, x, height = y + 1, 0, 0
        for panel in row.PANELS:
            if x + panel.width > _COLUMNS:
                y, x, height = y + height, 0, 0
            made.append(_panel(len(made) + 1, panel, x, y))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return made


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": number,
        "type": _TYPES.get(panel.kind, panel.kind),
        "title": panel.title,
        "description": f"{panel.shows}\n\n**Bad:** {panel.bad}",
        "datasource": _DATASOURCE,
        "gridPos": {"h": panel.height, "w": panel.width, "x": x, "y": y},
        "targets": [_target(number, panel, *query) for number, query in enumerate(panel.queries.items())],
        "fieldConfig": {"defaults": _field(panel), "overrides": [_colour(*one) for one in panel.colours.items()]},
        "options": _options(panel),
    }
    if panel.kind == "table":
        order = {column: number for number, column in enumerate(panel.columns)}
        organize = {"excludeByName": {"Time": True}, "renameByName": dict(panel.columns), "indexByName": order}
        made["transformations"] = [{"id": "organize", "options": organize}]
    return made


def _target(number: int, panel: Panel, legend: str, query: str) -> dict[str, Any]:
    formats = {"table": "table", "heatmap": "heatmap"}
    return {
        "refId": chr(ord("A") + number),
        "datasource": _DATASOURCE,
        "expr": query,
        "legendFormat": legend,
        "format": formats.get(panel.kind, "time_series"),
        "instant": panel.instant,
        "range": not panel.instant,
        # The exemplar of a latency is the trace of a call with that latency.
        "exemplar": panel.unit == "s" and "_bucket{" in query and panel.kind in ("lines", "heatmap"),
    }


def _field(panel: Panel) -> dict[str, Any]:
    steps = [{"color": colour, "value": value} for value, colour in panel.steps]
    made: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    made["color"] = {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"}
    if panel.none:
        made["noValue"] = panel.none
    if panel.none and panel.kind == "stat":
        result = {"text": panel.none, "color": panel.none_colour}
        made["mappings"] = [{"type": "special", "options": {"match": "null+nan", "result": result}}]
    if panel.decimals is not None:
        made["decimals"] = panel.decimals
    if panel.kind in ("lines", "bars"):
        bars = panel.kind == "bars"
        made["custom"] = {
            "drawStyle": "bars" if bars else "line",
            "lineWidth": 1,
            "fillOpacity": 80 if bars else 8 if len(panel.queries) == 1 else 0,
            "showPoints": "never",
            "axisSoftMin": 0,
            "stacking": {"mode": "normal" if bars else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if len(panel.steps) > 1 else "off"},
        }
    return made


def _colour(legend: str, colour: str) -> dict[str, Any]:
    return {
        "matcher": {"id": "byRegexp", "options": f"/{legend}/"},
        "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
    }


def _options(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case "stat":
            return {
                "colorMode": "background",
                "graphMode": "none" if panel.instant else "area",
                "textMode": "value_and_name" if any("{{" in legend for legend in panel.queries) else "value",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            }
        case "heatmap":
            return {
                "calculate": False,
                "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "orange"},
                "cellGap": 1,
                "exemplars": {"color": "rgba(255,0,255,0.7)"},
                "filterValues": {"le": 1e-9},
                "legend": {"show": True},
                "tooltip": {"mode": "single", "yHistogram": True},
                "yAxis": {"axisPlacement": "left", "unit": panel.unit},
            }
        case "table":
            return {"showHeader": True, "cellHeight": "sm"}
        case _:
            return {
                "legend": {
                    "displayMode": "table",
                    "placement": "bottom",
                    "showLegend": True,
                    "calcs": ["lastNotNull", "max"],
                },
                "tooltip": {"mode": "multi", "sort": "desc"},
            }


def main() -> None:
    """Write the dashboard, or check it."""
    text = json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv[1:]:
        OUTPUT.write_text(text)
    elif not OUTPUT.exists() or OUTPUT.read_text() != text:
        sys.exit(f"{OUTPUT}: differs from deploy/grafana/rows; run make dashboard")


if __name__ == "__main__":
    main()
