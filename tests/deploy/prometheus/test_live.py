"""The rules against the live service, because a rule with a wrong name or label has no data."""

import re
import time
from itertools import chain

import pytest

from deploy.prometheus.live import Live
from deploy.prometheus.load import TRACE_ID
from deploy.prometheus.promql import label_values, operands, rules

WITHOUT_DATA = {
    'absent(up{job="chatrpc"})': "the target exists",
    "sum by (job, instance) (increase(chatrpc_worker_unexpected_exits_total[30m]))": "only with --workers",
    'process_start_time_seconds{worker=~"parent"}': "only with --workers",
}
EXPRESSIONS = [rule["expr"] for rule in rules()]
QUERIES = sorted(set(chain.from_iterable([*operands(expr), *label_values(expr)] for expr in EXPRESSIONS)))
EXEMPLARS = (
    "grpc_server_handling_seconds_bucket",
    "chatrpc_overhead_seconds_bucket",
    "gen_ai_client_operation_duration_seconds_bucket",
    "gen_ai_client_operation_time_to_first_chunk_seconds_bucket",
)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: re.sub(r"\s+", " ", query))
def test_a_rule_finds_data(live_prometheus: Live, query: str) -> None:
    values = [float(series["value"][1]) for series in live_prometheus.query(query)]
    assert bool(values) == (query not in WITHOUT_DATA)
    assert all(value == value for value in values), "not a number"


def test_every_exception_is_a_query() -> None:
    assert WITHOUT_DATA.keys() <= set(QUERIES)


def test_prometheus_evaluates_every_rule(live_prometheus: Live) -> None:
    groups = live_prometheus.prometheus.get("rules")["groups"]
    health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert health == {rule.get("record") or rule["alert"]: "ok" for rule in rules()}


def test_the_target_is_up(live_prometheus: Live) -> None:
    assert [series["value"][1] for series in live_prometheus.query("up")] == ["1"]


def test_started_calls_are_handled(live_prometheus: Live) -> None:
    by = "sum by (grpc_type, grpc_service, grpc_method)"
    values = [
        {tuple(sorted(series["metric"].items())): series["value"][1] for series in live_prometheus.query(query)}
        for query in (f"{by} (grpc_server_started_total)", f"{by} (grpc_server_handled_total)")
    ]
    assert values[0] == values[1]
    assert sum(map(float, values[0].values())) == live_prometheus.load.calls


@pytest.mark.parametrize("histogram", EXEMPLARS)
def test_exemplars_lead_to_traces(live_prometheus: Live, histogram: str) -> None:
    now = time.time()
    series = live_prometheus.prometheus.get("query_exemplars", query=histogram, start=now - 600, end=now)
    ids = {exemplar["labels"].get("trace_id") for each in series for exemplar in each["exemplars"]}
    assert ids == {TRACE_ID}
