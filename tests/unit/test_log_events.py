"""Every log record of the service has an event code, and docs/runbook.md lists each code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "service" / "chatrpc_server").rglob("*.py"))
LEVELS = {"log", "debug", "info", "warning", "error", "exception", "critical"}


def log_calls(file: Path) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LEVELS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "log"
    ]


def event(call: ast.Call) -> str | None:
    """Return the literal of `extra={"event": ...}`."""
    for keyword in call.keywords:
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
            for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "event" and isinstance(value, ast.Constant):
                    return str(value.value)
    return None


CALLS = [(file, call) for file in SOURCES for call in log_calls(file)]


@pytest.mark.parametrize(("file", "call"), CALLS, ids=[f"{file.stem}:{call.lineno}" for file, call in CALLS])
def test_a_record_has_an_event_code(file: Path, call: ast.Call) -> None:
    assert re.fullmatch("[a-z]+(_[a-z]+)*", event(call) or ""), ast.unparse(call)


def test_the_runbook_lists_every_code() -> None:
    section = (ROOT / "docs" / "runbook.md").read_text().partition("## Log events")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted({event(call) or "" for _, call in CALLS} | {"library_message"})
