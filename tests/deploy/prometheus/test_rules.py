"""promtool accepts the rules, and every alert has its cases and its section in the runbook."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.prometheus.live import MISSING, ROOT, RULES, Live, tool
from deploy.prometheus.promql import rules

TESTS = sorted((RULES.parent / "tests").glob("*.yaml"))
CASES = {"fires, then resolves", "silent just below its threshold"}
RUNBOOK = "https://github.com/chatrpc/chatrpc/blob/main/docs/runbook.md#"
ALERTS = [rule for rule in rules() if "alert" in rule]
NAMES = [test["name"] for file in TESTS for test in yaml.safe_load(file.read_text())["tests"]]


def promtool(*arguments: str | Path, given: bytes = b"") -> None:
    """Run promtool; fail with its output."""
    if not (program := tool("promtool")):
        pytest.skip(MISSING)
    done = subprocess.run([program, *arguments], input=given, capture_output=True, timeout=50, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


def test_the_rules_are_valid() -> None:
    promtool("check", "rules", *RULES.glob("*.yaml"))


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_the_rules_pass_their_cases(file: Path) -> None:
    promtool("test", "rules", file)


def test_metrics_pass_promtool(live_prometheus: Live) -> None:
    promtool("check", "metrics", given=live_prometheus.metrics_text())


def test_no_series_no_alert() -> None:
    assert "all but ChatrpcDown: silent without any series" in NAMES


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_is_complete(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    cases = {case.partition(": ")[2] for case in NAMES if case.startswith(f"{name}: ")}
    # An alert on a rate needs a case for the time after the traffic.
    wanted = CASES | ({"silent without traffic"} if "rate" in alert["expr"] else set())
    assert cases == wanted
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == RUNBOOK + name.lower()
    assert f"\n## {name}\n" in (ROOT / "docs" / "runbook.md").read_text()
