"""The settings file changes while the service runs."""

import asyncio
import logging
import os
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chatrpc_server import settings
from chatrpc_server.server import Server
from chatrpc_server.settings import sources, watcher
from chatrpc_server.telemetry import logs
from support import Service

FIRST = """
listen: 127.0.0.1:0
metrics_listen: 127.0.0.1:0
drain: {delay_seconds: 0}
log: {level: warning}
"""


@asynccontextmanager
async def _follows(file: Path, monkeypatch: pytest.MonkeyPatch, first: str = FIRST) -> AsyncIterator[Service]:
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.01)
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", root.level)
    file.write_text(first)  # noqa: ASYNC240  # nothing runs yet
    args = Namespace(config=str(file))
    followed = settings.settings_file(args, {})
    server = Server(settings.load(args, {}), followed)
    await server.start()
    try:
        yield Service(server, None, None)  # type: ignore[arg-type]  # the test makes no call
    finally:
        await server.stop()


def _rewrite(file: Path, text: str) -> None:
    """Replace the content in one step, because the watcher can read a half-written file."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.replace(file)


async def _noticed(chat: Service, result: str, times: int) -> None:
    async with asyncio.timeout(30):
        while chat.value("chatrpc_config_reloads_total", result=result) < times:
            await asyncio.sleep(0.005)


async def test_the_level_changes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "chatrpc.yaml"
    async with _follows(file, monkeypatch) as chat:
        since = chat.value("chatrpc_config_last_reload_success_timestamp_seconds")
        _rewrite(file, FIRST.replace("warning", "debug"))
        await _noticed(chat, "success", 1)
        assert logging.getLogger("chatrpc.access").isEnabledFor(logging.DEBUG)
        assert chat.value("chatrpc_config_last_reload_success_timestamp_seconds") > since
        _rewrite(file, FIRST.replace("warning", "error") + "workers: 2\nlimits: {max_in_flight: 1}\n")
        await _noticed(chat, "success", 2)
        assert not logging.getLogger("chatrpc.access").isEnabledFor(logging.WARNING)
        (warning,) = [record for record in caplog.records if record.event == "config_restart_required"]
        assert warning.settings == "limits.max_in_flight, workers"
        assert chat.server.settings.limits.max_in_flight == 1000


@pytest.mark.parametrize(
    ("content", "mistake"),
    [("log: {level: loud}", "log.level in"), ("log: [", "line"), ("lisen: x", "did you mean listen?"), (None, "FILE")],
    ids=["value", "yaml", "name", "missing"],
)
async def test_an_invalid_file_changes_nothing(
    content: str | None,
    mistake: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "chatrpc.yaml"
    async with _follows(file, monkeypatch) as chat:
        level = logging.getLogger().level
        file.unlink() if content is None else _rewrite(file, content)
        await _noticed(chat, "failure", 1)
        assert logging.getLogger().level == level
        (error,) = [record for record in caplog.records if record.event == "config_reload_failed"]
        assert mistake.replace("FILE", str(file)) in error.mistakes
        _rewrite(file, FIRST)
        await _noticed(chat, "success", 1)


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


HOSTILE = {
    "deep": lambda file: _rewrite(file, "a: " + "[" * 3000),
    "laughs": lambda file: _rewrite(file, "a: &a [x]\n" + "\n".join(f"b{n}: [*a, *a]" for n in range(9))),
    "duplicate-anchors": lambda file: _rewrite(file, "log: &one {}\ntls: &one {}"),
    "binary": lambda file: file.write_bytes(bytes(range(256))),
    "not-utf-8": lambda file: file.write_bytes(b"listen: \xff"),
    "large": lambda file: file.write_bytes(b"#" * (1 << 20)),
    "fifo": _fifo,
    "folder": _folder,
    "zero": lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
    "loop": lambda file: (file.unlink(), file.symlink_to(file)),
}


@pytest.mark.parametrize("spoil", HOSTILE.values(), ids=HOSTILE)
async def test_no_file_ends_the_watch(
    spoil: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "chatrpc.yaml"
    async with _follows(file, monkeypatch) as chat:
        spoil(file)
        await _noticed(chat, "failure", 1)
        new = tmp_path / "new"
        new.write_text(FIRST)
        if file.is_dir():
            file.rmdir()
        new.rename(file)
        await _noticed(chat, "success", 1)
    assert "background_task_failed" not in [getattr(record, "event", "") for record in caplog.records]


@pytest.mark.parametrize("error", [MemoryError, RecursionError, OSError, RuntimeError, AssertionError])
@pytest.mark.parametrize("place", ["load", "apply"])
async def test_no_exception_ends_the_watch(
    error: type[Exception],
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise error

    file = tmp_path / "chatrpc.yaml"
    with monkeypatch.context() as patch:
        async with _follows(file, monkeypatch) as chat:
            patch.setattr(*(sources, "load_model") if place == "load" else (logs, "set_level"), fail)
            _rewrite(file, FIRST + "\n")
            await _noticed(chat, "failure", 1)
            patch.undo()
            _rewrite(file, FIRST + "\n\n")
            await _noticed(chat, "success", 1)
    (record,) = [record for record in caplog.records if record.event == "config_reload_failed"]
    assert record.mistakes == f"{file}: unexpected {error.__name__}; report the exception"
    assert record.exc_info
    assert record.exc_info[0] is error


async def test_a_cause_outside_the_file_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unchanged file becomes valid if a file that it names appears. The same mistake is reported once."""
    file, key = tmp_path / "chatrpc.yaml", tmp_path / "key"
    async with _follows(file, monkeypatch) as chat:
        loads = 0
        load = sources.load_model

        def count(*args: Any) -> Any:
            nonlocal loads
            loads += 1
            return load(*args)

        monkeypatch.setattr(sources, "load_model", count)
        _rewrite(file, f"{FIRST}upstream: {{api_key_file: {key}}}\n")
        async with asyncio.timeout(30):
            while loads < 3:
                await asyncio.sleep(0.005)
        _rewrite(key, "secret")
        await _noticed(chat, "success", 1)
        assert chat.value("chatrpc_config_reloads_total", result="failure") == 1
    (warning,) = [record for record in caplog.records if record.event == "config_restart_required"]
    assert warning.settings == "upstream.api_key, upstream.api_key_file"


async def test_a_changed_secret_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "chatrpc.yaml"
    async with _follows(file, monkeypatch, f"{FIRST}upstream: {{api_key: first-canary}}\n") as chat:
        _rewrite(file, f"{FIRST}upstream: {{api_key: second-canary}}\n")
        await _noticed(chat, "success", 1)
    (warning,) = [record for record in caplog.records if record.event == "config_restart_required"]
    assert warning.settings == "upstream.api_key"
    assert "canary" not in caplog.text + repr([vars(record) for record in caplog.records])


async def test_a_change_before_the_watch_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the load of the settings and the start of the watch a second passes, in a restarted worker much more."""
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.01)
    file = tmp_path / "chatrpc.yaml"
    _rewrite(file, FIRST)
    args = Namespace(config=str(file))
    followed = settings.settings_file(args, {})
    server = Server(settings.load(args, {}), followed)
    _rewrite(file, FIRST + "\n")
    await server.start()
    try:
        await _noticed(Service(server, None, None), "success", 1)  # type: ignore[arg-type]
    finally:
        await server.stop()
