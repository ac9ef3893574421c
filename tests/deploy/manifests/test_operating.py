"""Settings, values, metrics, alerts and panels that docs/operating.md names exist."""

import json
import re
import shlex
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatrpc_server.settings import describe
from deploy.manifests.charts import CHART, ROOT, Release, template

PAGES = [ROOT / "docs/operating.md", ROOT / "docs/balancing.md", CHART / "README.md"]
# Prefixes of settings of gRPC, Envoy Gateway and Istio in balancing.md.
OF_OTHERS = ("grpc.", "healthCheck.", "retries.", "retry.", "timeout.")
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SETTINGS = {row.path for row in describe()}


def named(pattern: str) -> list[str]:
    """Return the texts in backticks on the pages that match the pattern."""
    return sorted({name for page in PAGES for name in re.findall(rf"`({pattern})[`{{:=]", page.read_text())})


def value(path: str) -> Any:
    return reduce(lambda values, key: values[key], path.split("."), VALUES)


@pytest.mark.parametrize("path", named(r"[a-z][A-Za-z]*(?:\.[a-z_A-Z]+)+"))
def test_settings_and_values(path: str) -> None:
    if path.removeprefix("config.") in SETTINGS or path.startswith(OF_OTHERS):
        return
    if not path.endswith((".yaml", ".md", ".json", ".binpb")):
        value(path)


@pytest.mark.parametrize("metric", named("chatrpc_[a-z_]+"))
def test_metrics(metric: str) -> None:
    assert f"| `{metric}` |" in (ROOT / "docs/metrics.md").read_text()


@pytest.mark.parametrize("alert", named("Chatrpc[A-Za-z]+"))
def test_alerts(alert: str) -> None:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/rules/alerts.yaml").read_text())["groups"]
    assert alert in {rule["alert"] for group in groups for rule in group["rules"]}


def test_panels() -> None:
    section = (ROOT / "docs/operating.md").read_text().partition("## Read the dashboard")[2].partition("\n## ")[0]
    panels = {panel["title"] for panel in json.loads((CHART / "files/dashboard.json").read_text())["panels"]}
    quoted = {" ".join(title.split()) for title in re.findall(r'"([^"]+)"', section)}
    assert len(quoted) > 15
    assert quoted <= panels, quoted - panels


@pytest.mark.parametrize("page", [PAGES[0], PAGES[-1]], ids=lambda page: page.name)
def test_helm_accepts_the_values_of_the_page(page: Path) -> None:
    commands = re.findall(r"^(helm .*(?:install|upgrade) (?:.*\\\n)*.*)$", page.read_text(), re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(command)
        sets = [word for flag, word in pairwise(words) if flag == "--set"]
        done = template(*(f"--set={each}" for each in sets))
        assert done.returncode == 0, done.stderr


def test_the_table_of_a_pods_shutdown() -> None:
    text = (ROOT / "docs/operating.md").read_text()
    rows = re.findall(r"^\| (\d+) \|", text.partition("| what happens |")[2], re.MULTILINE)
    table = [int(second) for second in rows[:5]]
    drain = VALUES["config"]["drain"]
    begin = VALUES["preStopSeconds"]
    goaway = begin + drain["delay_seconds"]
    grace = Release("default").pod["terminationGracePeriodSeconds"]
    assert table == [0, begin, goaway, goaway + drain["grace_seconds"], grace]
