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
        logs.configure(logging.StreamHandler(sys.stderr), "info", style, Redactor([key]))
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


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize(
    ("name", "message", "arguments", "shown"),
    [
        ("grpc._cython.cygrpc", "Invalid encoding on %s", (b"Bearer caf\xe9",), "Invalid encoding on …"),
        ("grpc.aio", "%r took %.1f s, %d times", ("canary", 0.5, 3), "'…' took 0.5 s, 3 times"),
        ("grpc.aio", "number %x", ("canary",), "number %x"),
        ("grpc.aio", "%(key)s", ({"key": "canary"},), "%(key)s"),
        ("grpc._server", ValueError("canary"), (), "ValueError"),
        ("asyncio", "Exception in callback f('canary')\nhandle: <Handle canary>", (), "Exception in callback f"),
        ("asyncio", "Task exception was never retrieved\nfuture: canary", (), "Task exception was never retrieved"),
        ("other", "100% of it\ncanary", (), "100% of it"),
    ],
)
def test_messages_of_libraries_contain_no_values(
    style: str, name: str, message: Any, arguments: tuple[Any, ...], shown: str
) -> None:
    record = logging.LogRecord(name, logging.ERROR, "", 0, message, arguments, None)
    formatter = logs._Json(str) if style == "json" else logs._Text(str)
    line = formatter.format(record)
    assert shown in line
    assert "canary" not in line
    assert "Bearer" not in line
    assert "\n" not in line


def test_a_flood_of_library_messages_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    flood = logs._FloodFilter()

    def passed(count: int, **fields: Any) -> list[logging.LogRecord]:
        records = [logging.makeLogRecord({"name": "grpc", "msg": "m", **fields}) for _ in range(count)]
        return [record for record in records if flood.filter(record)]

    assert len(passed(30)) == 10
    assert len(passed(30, event="tls_handshake_failed")) == 10, "another kind has its own limit"
    assert len(passed(30, event="call")) == 30, "the service's own lines have no limit"
    now = 10.0
    first, *others = passed(30)
    assert (first.suppressed, len(others)) == (20, 9)  # type: ignore[attr-defined]
    passed(3000, msg="other")
    assert len([record for number in range(3000) for record in passed(1, msg=str(number))]) == 3000
    assert len(flood._seen) <= 1001
