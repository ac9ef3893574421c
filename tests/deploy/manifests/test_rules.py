"""The rules of a release cover its own job like the rules of deploy/prometheus, and no other job."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.manifests.charts import ROOT, Release, run

PROMTOOL = ROOT / ".tools/bin/promtool"
RULES = ROOT / "deploy/prometheus/rules"
CASES = sorted((ROOT / "deploy/prometheus/tests").glob("*.yaml"))
JOB = "chat/chatrpc"


def groups() -> list[dict[str, Any]]:
    return list(Release("full").one("PrometheusRule")["spec"]["groups"])


def promtool(folder: Path, cases: str) -> None:
    """Test the release's rules with these cases."""
    if not PROMTOOL.exists():
        pytest.skip("promtool: not installed; run `make tools`")
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups()}))
    parsed = {**yaml.safe_load(cases), "rule_files": ["rules.yaml"]}
    (folder / "cases.yaml").write_text(yaml.safe_dump(parsed))
    done = run(PROMTOOL, "test", "rules", folder / "cases.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_differ_from_those_of_deploy_only_in_the_job() -> None:
    ours = [group for path in sorted(RULES.glob("*.yaml")) for group in yaml.safe_load(path.read_text())["groups"]]
    theirs = groups()
    for group in [*ours, *theirs]:
        for rule in group["rules"]:
            rule["expr"] = re.sub(r'\{job="[^"]*"\}|job="[^"]*", ', "", rule["expr"])
    assert theirs == ours


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """Yield metric and matchers of each selector, without functions, operators, label lists and ranges."""
    bare = re.sub(r"\b(?:by|on) \([^)]*\)|\[[^]]*\]", "", expression)
    for name, what in re.findall(r"\b([a-zA-Z_:][\w:]*)(\{[^}]*\}| *\()?", bare):
        if not what.endswith("(") and name not in ("and", "or"):
            yield name, what


def test_every_selector_has_the_job() -> None:
    found = [each for group in groups() for rule in group["rules"] for each in selectors(rule["expr"])]
    assert len(found) > 50
    names = {name for name, _ in found}
    assert {"up", "chatrpc:rpcs_handled:rate5m", "process_start_time_seconds", "chatrpc_build_info"} < names
    for name, what in found:
        assert re.match(rf'\{{job="{JOB}"[,}}]', what), name


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_for_their_own_job_they_give_the_same_results(file: Path, tmp_path: Path) -> None:
    promtool(tmp_path, file.read_text().replace('job="chatrpc"', f'job="{JOB}"'))


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_for_other_jobs_they_give_no_results(file: Path, tmp_path: Path) -> None:
    cases = yaml.safe_load(file.read_text())
    for case in cases["tests"]:
        for expectation in case["promql_expr_test"]:
            query = expectation["expr"].replace("ALERTS)", "ALERTS{})").replace("ALERTS{", 'ALERTS{job="chatrpc",')
            expectation.update(expr=query, exp_samples=[])
    promtool(tmp_path, yaml.safe_dump(cases))
