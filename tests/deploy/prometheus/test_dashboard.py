"""The dashboard is valid for Grafana, shows the service's metrics, and its queries find data."""

import html
import json
import math
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from chatrpc_server.rpc.layers.metrics import RPCS
from chatrpc_server.telemetry.exporter import register_process
from chatrpc_server.telemetry.metrics import Metrics
from chatrpc_server.telemetry.multiprocess import SharedMetrics
from deploy.prometheus.live import ROOT, Live
from deploy.prometheus.load import TRACE_ID
from support.dashboard_preview import page
from support.dashboard_preview.series import DASHBOARD

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [
    pytest.param(panel, target, id=f"{panel['title']}-{target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
QUERIED = ["job", "instance", "model", "upstream"]

WITHOUT_DATA = {"Workers": "there are such metrics only with --workers N, and the live service is one process"}
LABELS_NOT_ALWAYS_THERE = {"worker", "code"}
"""`worker` only with --workers N, `code` only with a response: Prometheus has no empty labels."""
WINDOWS = {"$__rate_interval", "$__range"}
OTHER_WINDOWS = {"Error budget burn rate": {"5m", "1h", "6h"}}
"""Windows of the alerts."""
NOT_SHOWN = {
    "process_virtual_memory_bytes": "adds nothing to resident memory",
    "python_info": "chatrpc_build_info has it",
    "python_gc_objects_collected": "for developers",
    "python_gc_objects_uncollectable": "for developers",
    "python_gc_collections": "for developers",
}
EXEMPLARS = [
    "grpc_server_handling_seconds",
    "gen_ai_client_operation_duration_seconds",
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "chatrpc_overhead_seconds",
]
"""Metrics whose exemplars are traces."""
PROMETHEUS_OWN = {"up"}
FUNCTIONS = {"avg", "count", "histogram_quantile", "increase", "max", "min", "rate", "sum", "time", "changes"}
WORDS = {"and", "by", "on"}


def queries(panel: dict[str, Any]) -> list[str]:
    """Return all queries of the panel."""
    return [target["expr"] for target in panel["targets"]]


def filled(query: str) -> str:
    """Return the query as Grafana sends it, with all values selected."""
    for name, variable in VARIABLES.items():
        query = query.replace(f"${name}", variable["query"] if variable["type"] == "textbox" else ".*")
    return query.replace("$__rate_interval", "5m").replace("$__range", "5m")


def named(query: str) -> set[str]:
    """Return the metrics in a query."""
    bare = re.sub(r'"[^"]*"|\[[^]]*\]|\{[^}]*\}|\$\w+|\b(?:by|on) \([^)]*\)', " ", query)
    return set(re.findall(r"\b[a-zA-Z_]\w*", bare)) - FUNCTIONS - WORDS


def families() -> dict[str, set[str]]:
    """Return the sample names of each metric of the service."""
    registry = CollectorRegistry()
    register_process(registry)
    registries = [registry, Metrics(RPCS, ["default"]).registry]
    with SharedMetrics(1) as shared:
        found = {
            family.name: family.type for registry in [*registries, shared.registry] for family in registry.collect()
        }
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return {name: {name + suffix for suffix in suffixes.get(kind, [""])} for name, kind in found.items()}


FAMILIES = families()


def lost(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of our values that differ in theirs; defaults that they add do not count."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key in theirs:
                yield from lost(value, theirs[key], f"{path}/{key}")
            elif value is not None:
                yield f"{path}/{key}"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(one, other, f"{path}/{index}")
    elif ours != theirs:
        yield path


def test_it_is_fresh() -> None:
    command = [sys.executable, ROOT / "deploy/grafana/generate.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_grafana_knows_every_field() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the SDK prefers the v2 schema
        from grafana_foundation_sdk.cog.encoder import JSONEncoder
        from grafana_foundation_sdk.cog.plugins import register_default_plugins
        from grafana_foundation_sdk.models.dashboard import Dashboard

        register_default_plugins()
        there_and_back = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    assert list(lost(DASHBOARD, there_and_back)) == []


def test_it_can_be_imported_anywhere() -> None:
    assert DASHBOARD["uid"] == "chatrpc"
    assert DASHBOARD["editable"]
    assert "id" not in DASHBOARD
    assert {"datasource", *QUERIED} <= VARIABLES.keys()
    holders = [
        *PANELS,
        *(target for panel in PANELS for target in panel["targets"]),
        *(VARIABLES[name] for name in QUERIED),
    ]
    assert all(holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for holder in holders)


@pytest.mark.parametrize("name", QUERIED)
def test_a_variable_accepts_several_values_and_all(name: str) -> None:
    variable = VARIABLES[name]
    assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".*")


def test_no_panel_covers_another() -> None:
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    shows, _, bad = panel["description"].partition("\n\n**Bad:** ")
    assert shows
    assert bad
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert panel["type"] == "table" or all(target["legendFormat"] for target in panel["targets"])
    windows = {window for query in queries(panel) for window in re.findall(r"\[(.*?)\]", query)}
    assert windows <= WINDOWS | OTHER_WINDOWS.get(panel["title"], set())
    latency = panel["type"] in ("timeseries", "heatmap") and panel["fieldConfig"]["defaults"]["unit"] == "s"
    for target in panel["targets"]:
        assert target["exemplar"] == (latency and "_bucket{" in target["expr"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_its_metrics_exist(panel: dict[str, Any]) -> None:
    for query in queries(panel):
        metrics = named(query)
        assert metrics
        assert metrics - PROMETHEUS_OWN <= set().union(*FAMILIES.values())


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - NOT_SHOWN.keys()))
def test_every_metric_is_shown(family: str) -> None:
    shown = {metric for panel in PANELS for query in queries(panel) for metric in named(query)}
    assert shown & FAMILIES[family]


@pytest.mark.parametrize("name", QUERIED)
def test_a_variable_finds_its_values(live_prometheus: Live, name: str) -> None:
    assert VARIABLES[name]["definition"] == VARIABLES[name]["query"]["query"]
    parts = re.fullmatch(r"label_values\((.*), (\w+)\)", VARIABLES[name]["query"]["query"])
    assert parts
    found = live_prometheus.query(filled(parts[1]))
    assert found
    assert all(parts[2] in series["metric"] for series in found)


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_query_finds_data(live_prometheus: Live, panel: dict[str, Any], target: dict[str, Any]) -> None:
    found = live_prometheus.query(filled(target["expr"]))
    if panel["title"] in WITHOUT_DATA:
        assert found == [], "it has data: remove it from WITHOUT_DATA"
        return
    assert found
    values = [float(series["value"][1]) for series in found]
    assert not all(map(math.isnan, values))
    labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) - LABELS_NOT_ALWAYS_THERE
    for series in found:
        assert labels <= series["metric"].keys()


@pytest.mark.parametrize("metric", EXEMPLARS)
def test_a_latency_leads_to_a_trace(live_prometheus: Live, metric: str) -> None:
    now = time.time()
    (query, *_) = [
        target["expr"]
        for panel in PANELS
        for target in panel["targets"]
        if target["exemplar"] and metric in target["expr"]
    ]
    found = live_prometheus.prometheus.get("query_exemplars", query=filled(query), start=now - 300, end=now)
    assert {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]} == {TRACE_ID}


def test_the_picture_can_be_drawn(live_prometheus: Live) -> None:
    drawn = page.draw(live_prometheus.prometheus, 20)
    shown = [panel["title"] for panel in page.PANELS if panel["type"] != "row"]
    assert len(shown) == 20
    assert [title for title in shown if f"<h3>{html.escape(title)}</h3>" not in drawn] == []
    assert 'class="none"' not in drawn, "every panel has data"
    assert not re.search(r"\b(?:src|href)=|url\(|<script", drawn), "nothing is loaded from elsewhere"
