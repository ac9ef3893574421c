"""The runbook's questions have answers: to Prometheus in PromQL, to the log in jq."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus.live import ROOT, Live

TEXT = (ROOT / "docs" / "runbook.md").read_text()
SERVICE = "\n".join(file.read_text() for file in (ROOT / "service" / "chatrpc_server").rglob("*.py"))
WITHOUT_DATA = {"sum by (instance) (increase(chatrpc_workers_ended_total[30m]))": "only with --workers"}


def questions(language: str) -> list[str]:
    """What stands in the blocks of this language, each once."""
    return sorted(set(re.findall(rf"```{language}\n(.*?)\n```", TEXT, re.DOTALL)))


@pytest.mark.parametrize("query", questions("promql"))
def test_prometheus_answers(live_prometheus: Live, query: str) -> None:
    assert bool(live_prometheus.query(query)) == (query not in WITHOUT_DATA)


@pytest.mark.parametrize("command", questions("sh"))
def test_the_log_answers(live_prometheus: Live, command: str, tmp_path: Path) -> None:
    if not shutil.which("jq"):
        pytest.skip("needs jq: apt-get install jq")
    calls = [line for line in live_prometheus.service.written() if '"event": "call"' in line]
    (tmp_path / "chatrpc.log").write_text("\n".join(["not JSON", *calls]))
    asked = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert asked.stderr == ""
    if '.event == "call"' in command:
        fields = set(re.findall(r"[\[ (,]\.(\w+)", command))
        assert [field for field in fields if not any(f'"{field}": ' in line for line in calls)] == []
    else:
        assert [event for event in re.findall(r'\.event == "([^"]+)"', command) if f'"{event}"' not in SERVICE] == []


@pytest.mark.parametrize("command", [command for command in questions("sh") if ".reason" in command])
def test_the_log_has_failures_to_show(live_prometheus: Live, command: str, tmp_path: Path) -> None:
    if not shutil.which("jq"):
        pytest.skip("needs jq: apt-get install jq")
    (tmp_path / "chatrpc.log").write_text("\n".join(live_prometheus.service.written()))
    assert subprocess.check_output(["sh", "-c", command], cwd=tmp_path, text=True)
