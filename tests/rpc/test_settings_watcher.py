"""The settings file changes while the service runs."""

import asyncio
import logging
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chatrpc_server import settings
from chatrpc_server.server import Server
from chatrpc_server.settings import watcher
from support import Service

FIRST = """
listen: 127.0.0.1:0
metrics_listen: 127.0.0.1:0
drain: {delay_seconds: 0}
log: {level: warning}
"""


@asynccontextmanager
async def _follows(file: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.01)
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", root.level)
    file.write_text(FIRST)  # noqa: ASYNC240  # nothing runs yet
    args = Namespace(config=str(file))
    server = Server(settings.load(args, {}), settings.settings_file(args, {}))
    await server.start()
    try:
        yield Service(server, None, None)  # type: ignore[arg-type]  # the test makes no call
    finally:
        await server.stop()


async def _noticed(chat: Service, result: str, times: int) -> None:
    async with asyncio.timeout(10):
        while chat.value("chatrpc_config_reloads_total", result=result) < times:
            await asyncio.sleep(0.005)


async def test_the_level_changes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "chatrpc.yaml"
    async with _follows(file, monkeypatch) as chat:
        since = chat.value("chatrpc_config_last_reload_success_timestamp_seconds")
        file.write_text(FIRST.replace("warning", "debug"))
        await _noticed(chat, "success", 1)
        assert logging.getLogger("chatrpc.access").isEnabledFor(logging.DEBUG)
        assert chat.value("chatrpc_config_last_reload_success_timestamp_seconds") > since
        file.write_text(FIRST.replace("warning", "error") + "workers: 2\nlimits: {max_in_flight: 1}\n")
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
        file.unlink() if content is None else file.write_text(content)
        await _noticed(chat, "failure", 1)
        assert logging.getLogger().level == level
        (error,) = [record for record in caplog.records if record.event == "config_reload_failed"]
        assert mistake.replace("FILE", str(file)) in error.mistakes
        file.write_text(FIRST)
        await _noticed(chat, "success", 1)
