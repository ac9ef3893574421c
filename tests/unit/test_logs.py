"""A line of the log stays one line, of JSON or of text, and holds no key."""

import json
import logging
import sys
from typing import Any

import pytest
from pydantic import SecretStr

from chatrpc_server import logs

KEY = 'key "with\\odd/marks"'


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Logs one line as the service would, and gives it back."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)

    def log(style: str, key: str, **fields: Any) -> str:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
        logs.configure("info", style, logs.Redactor([SecretStr(key)]))
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
    ],
    ids=["bearer", "the-key", "looks-like-a-key", "lines", "number", "flag", "object"],
)
def test_json(logged: Any, value: Any, shown: Any) -> None:
    line = logged("json", KEY, field=value)
    assert line.count("\n") == 1
    assert json.loads(line)["field"] == shown


def test_text(logged: Any) -> None:
    line = logged("text", KEY, field=f"{KEY}\nx=y")
    assert line.count("\n") == 1
    assert 'field="[redacted]' in line
    assert "odd" not in line


@pytest.mark.parametrize("style", ["json", "text"])
def test_a_dummy_key_hides_nothing(logged: Any, style: str) -> None:
    assert "12.1" in logged(style, "1", field=12.1)
