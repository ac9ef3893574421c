"""A line of the log stays one line, of JSON or of text, and holds no key."""

import json
import logging
import sys
from typing import Any

import pytest

from chatrpc_server.core.text import Redactor
from chatrpc_server.telemetry import logs

KEY = 'key "with\\odd/marks"'


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Log one line as the service does; return it."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)

    def log(style: str, key: str, **fields: Any) -> str:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
        logs.configure("info", style, Redactor([key]))
        logging.getLogger("chatrpc").info("event", extra=fields)
        return capsys.readouterr().err

    return log


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ('bearer x"y', '[redacted]"y'),
        (f"say {KEY}", "say [redacted]"),
        ("sk-0123456789", "[redacted]"),
        ("two\nlines", "two\nlines"),
        (12.1, 12.1),
        (True, True),
        (ValueError(KEY), "[redacted]"),
        ("half a pair: \ud83d", "half a pair: \ud83d"),
        (1 << 70, 1 << 70),
    ],
    ids=["bearer", "the-key", "looks-like-a-key", "lines", "number", "flag", "object", "surrogate", "large"],
)
def test_json(logged: Any, value: Any, shown: Any) -> None:
    line = logged("json", KEY, field=value)
    assert line.count("\n") == 1
    assert json.loads(line)["field"] == shown


@pytest.mark.parametrize(
    ("created", "shown"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1764090000.0015, "2025-11-25T17:00:00.001Z"),
        (1764090000.9999, "2025-11-25T17:00:00.999Z"),
    ],
)
def test_time(created: float, shown: str) -> None:
    record = logging.makeLogRecord({"created": created})
    for formatter in (logs._Json(str), logs._Text(str)):
        assert shown in formatter.format(record)


def test_text(logged: Any) -> None:
    line = logged("text", KEY, field=f"{KEY}\nx=y")
    assert line.count("\n") == 1
    assert 'field="[redacted]' in line
    assert "odd" not in line


@pytest.mark.parametrize("style", ["json", "text"])
def test_a_dummy_key_hides_nothing(logged: Any, style: str) -> None:
    assert "12.1" in logged(style, "1", field=12.1)
