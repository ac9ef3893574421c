"""The runbook's queries find data: PromQL in Prometheus, jq in the log."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from deploy.prometheus.live import MISSING, PATH, ROOT, Live, tool

TEXT = (ROOT / "docs" / "runbook.md").read_text()
SERVICE = "\n".join(file.read_text() for file in (ROOT / "service" / "chatrpc_server").rglob("*.py"))
WITHOUT_DATA = {"sum by (instance) (increase(chatrpc_worker_unexpected_exits_total[30m]))": "only with --workers"}


def blocks(language: str) -> list[str]:
    """Return the distinct blocks of this language."""
    return sorted(set(re.findall(rf"```{language}\n(.*?)\n```", TEXT, re.DOTALL)))


@pytest.mark.parametrize("query", blocks("promql"))
def test_a_query_finds_data(live_prometheus: Live, query: str) -> None:
    assert bool(live_prometheus.query(query)) == (query not in WITHOUT_DATA)


def ask(command: str, folder: Path, log: list[str]) -> str:
    """Return the command's output for this log."""
    if not tool("jq"):
        pytest.skip(MISSING)
    (folder / "chatrpc.log").write_text("\n".join(log))
    environ = os.environ | {"PATH": PATH}
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environ, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("command", blocks("sh"))
def test_a_command_names_existing_fields(live_prometheus: Live, command: str, tmp_path: Path) -> None:
    calls = [line for line in live_prometheus.service.written() if '"event":"call"' in line]
    ask(command, tmp_path, ["not JSON", *calls])
    if '.event == "call"' in command:
        fields = set(re.findall(r"[\[ (,]\.(\w+)", command))
        assert [field for field in fields if not any(f'"{field}":' in line for line in calls)] == []
    else:
        assert [event for event in re.findall(r'\.event == "([^"]+)"', command) if f'"{event}"' not in SERVICE] == []


@pytest.mark.parametrize("command", [command for command in blocks("sh") if ".reason" in command])
def test_a_command_finds_failures(live_prometheus: Live, command: str, tmp_path: Path) -> None:
    assert ask(command, tmp_path, live_prometheus.service.written())
