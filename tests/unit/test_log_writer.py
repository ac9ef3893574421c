"""The log's thread: order, bounds, full pipes and failed writes."""

import errno
import json
import logging
import os
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from chatrpc_server.telemetry import logs, stderr_capture
from chatrpc_server.telemetry.log_writer import LogWriter, count_dropped

LINE = "x" * 99
"""With its line end it has 100 bytes."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The ends of a pipe."""
    reading, writing = os.pipe()
    yield reading, writing
    for end in (reading, writing):
        with suppress(OSError):
            os.close(end)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., LogWriter]:
    """Return a function that makes a writer the only handler."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)

    def make(descriptor: int, buffer_bytes: int) -> LogWriter:
        writer = LogWriter(descriptor, buffer_bytes)
        logs.configure(writer, "info", "json", str)
        writer.setFormatter(_Plain())
        return writer

    return make


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if getattr(record, "event", None) == "log_lines_dropped":
            return f"dropped {record.lines}"  # type: ignore[attr-defined]
        return record.getMessage()


def _read(reading: int, until: str) -> list[str]:
    """Read until this line."""
    data = b""
    while not data.endswith(f"{until}\n".encode()):
        data += os.read(reading, 1 << 16)
    return data.decode().splitlines()


def _fill(log: logging.Logger, count: int) -> None:
    for number in range(count):
        log.info("%s %s", number, LINE)


def test_all_lines_are_written_in_order(make: Any, pipe: tuple[int, int]) -> None:
    writer = make(pipe[1], 1 << 20)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(_read(pipe[0], "last")))
    reader.start()
    log = logging.getLogger("chatrpc")
    _fill(log, 3000)
    log.info("half a pair: \ud83d")
    log.info("last")
    writer.finish()
    reader.join(60)
    assert lines == [*(f"{number} {LINE}" for number in range(3000)), "half a pair: \\ud83d", "last"]


def test_a_full_pipe_drops_lines_and_says_so(make: Any, pipe: tuple[int, int]) -> None:
    writer = make(pipe[1], 10_000)
    counted: list[int] = []
    log = logging.getLogger("chatrpc")
    _fill(log, 1000)
    count_dropped(counted.append)
    assert sum(counted) > 0, "lines that were dropped earlier"
    _fill(log, 1000)
    writer.finish()  # returns although no line can be written
    reported, written, rest = 0, 0, b""
    while reported != sum(counted):
        *lines, rest = (rest + os.read(pipe[0], 1 << 16)).split(b"\n")
        for line in map(bytes.decode, lines):
            if line.startswith("dropped "):
                reported += int(line.removeprefix("dropped "))
            else:
                written += 1
    assert written + sum(counted) == 2000
    log.info("after")
    assert _read(pipe[0], "after") == ["after"]


def test_a_closed_pipe_and_a_record_that_cannot_be_formatted(make: Any, pipe: tuple[int, int]) -> None:
    writer = make(pipe[1], 10_000)
    counted: list[int] = []
    count_dropped(counted.append)
    log = logging.getLogger("chatrpc")
    log.info("%d", "not a number")
    assert counted == [1]
    os.close(pipe[0])
    _fill(log, 3)
    writer.finish()
    assert sum(counted) == 5, "with the report of the first"
    log.info("again")
    writer.finish()
    assert sum(counted) == 6


def test_lines_that_are_missing_at_the_end_are_reported(make: Any, pipe: tuple[int, int]) -> None:
    writer = make(pipe[1], 10_000)
    logging.getLogger("chatrpc").info("%d", "not a number")
    writer.finish()
    assert _read(pipe[0], "dropped 1") == ["dropped 1"]


def test_after_a_failed_write_the_log_continues_on_a_new_line(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the middle of a line, and later has space."""
    file = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    write, space = os.write, 50

    def limited(descriptor: int, data: bytes) -> int:
        nonlocal space
        if descriptor != file:
            return write(descriptor, data)
        if space <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, bytes(data)[:space])
        space -= written
        return written

    monkeypatch.setattr(os, "write", limited)
    writer = make(file, 10_000)
    log = logging.getLogger("chatrpc")
    log.info(LINE)
    writer.finish()
    log.info("nothing of this fits")
    writer.finish()
    space = 10_000
    log.info("next")
    writer.finish()
    os.close(file)
    assert (tmp_path / "log").read_text().splitlines() == [LINE[:50], "next", "dropped 2"]


def test_a_descriptor_that_does_not_block(make: Any, pipe: tuple[int, int]) -> None:
    """Another process can set this flag for all that share a terminal or pipe."""
    os.set_blocking(pipe[1], False)
    writer = make(pipe[1], 1 << 20)
    log = logging.getLogger("chatrpc")
    _fill(log, 3000)
    log.info("last")
    assert len(_read(pipe[0], "last")) == 3001
    writer.finish()


def test_json_lines_of_the_whole_log(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`logs.writing` with all that writes to stderr without `logging`."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)

    def fail() -> None:
        raise ValueError("".join(["can", "ary"]))

    with logs.writing("info", "auto", str, buffer_bytes=1 << 20, capture=True):
        os.write(2, b"I1130 23:02:42.787167   27896 ssl_transport_security.cc:2563] Handshake failed with error X\n")
        os.write(2, b"E1130 23:02:42.787167   27896 a.cc:1] one\n=== Source Location Trace: ===\nb.cc:2\n\n")
        os.write(2, b"W1130 23:02:42.787167   27896 c.cc:3] two\n")
        os.write(2, b"free \xe9 text\n")
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        logging.getLogger("chatrpc").info("done", extra={"event": "done"})
    os.write(2, b"after\n")
    *lines, after = capfd.readouterr().err.splitlines()
    assert after == "after"
    shown = {line.pop("event"): line for line in map(json.loads, lines) if line.get("source") != "c.cc:3"}
    assert "canary" not in str(lines)
    assert shown["tls_handshake_failed"]["cause"] == "Handshake failed with error X"
    core = shown["grpc_core_message"]
    assert (core["message"], core["level"], core["source"]) == ("one", "warning", "a.cc:1")
    assert shown["stderr_output"]["output"] == "free \ufffd text"
    assert shown["uncaught_exception"]["exception"].endswith("ValueError")
    assert "done" in shown
    assert len(lines) == 6


def test_a_printed_exception_is_shown_without_its_message(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    text = "".join(["can", "ary"])
    with logs.writing("info", "json", str, buffer_bytes=1 << 20, capture=True):
        try:
            raise ValueError(f"{text}\n  {text}: {text}")
        except ValueError:
            os.write(2, traceback.format_exc().encode())
    line = json.loads(capfd.readouterr().err)
    assert "canary" not in line["output"]
    assert line["output"].splitlines()[0].startswith('  File "')
    assert line["output"].endswith("\nValueError")


def test_output_just_before_the_end_is_complete(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a child process has the pipe open, and though the reader is slow."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    emit = LogWriter.emit

    def emit_late(handler: LogWriter, record: logging.LogRecord) -> None:
        time.sleep(0.5)
        emit(handler, record)

    monkeypatch.setattr(LogWriter, "emit", emit_late)
    monkeypatch.setattr(stderr_capture, "_FINISH_SECONDS", 60.0)
    with logs.writing("info", "auto", str, buffer_bytes=1 << 20, capture=True):
        child = subprocess.Popen(["sleep", "60"])
        for number in range(3):
            os.write(2, f"I1130 23:02:42.787167   27896 a.cc:1] {number}\n".encode())
    child.kill()
    child.wait()
    shown = [json.loads(line)["message"] for line in capfd.readouterr().err.splitlines()]
    assert shown == ["0", "1", "2"]


def test_without_capture(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    with logs.writing("info", "auto", str, buffer_bytes=1 << 20):
        os.write(2, b"I1130 x\n")
    assert capfd.readouterr().err == "I1130 x\n"
