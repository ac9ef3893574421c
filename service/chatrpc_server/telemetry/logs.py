"""Structured logs: one line per event, as JSON for machines or text for a terminal. No line contains a secret.

Every record of the service has an event code in `extra={"event": …}`, stable across releases, beside its sentence;
docs/runbook.md lists the codes. Further fields travel in `extra=` too. Prompts, completions and upstream messages are
never logged; `core.text.Redactor` is the second line of defence, for keys. Libraries quote metadata and arguments of
calls in their messages, so values in their messages are withheld.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

from chatrpc_server.telemetry.log_writer import LogWriter
from chatrpc_server.telemetry.stderr_capture import captured_stderr

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
LIBRARIES = ("httpx", "httpcore", "aiohttp", "asyncio", "grpc")
"""Libraries whose records below a warning contain addresses and headers."""
_LIBRARY_EVENT = "library_message"
"""The event code of records that libraries write."""
_PLAIN = (bool, int, float)
_WITHHELD = "…"
_LINE_END, _REPRESENTATION = re.compile(r"\n"), re.compile(r"[(<\n]")
"""The end of the part of a message that is shown. Messages of asyncio contain representations of objects."""
_FLOOD_LINES, _FLOOD_SECONDS = 10, 10.0
"""Limit of similar lines that callers can cause without a call, such as by failed handshakes."""
_FLOOD_EVENTS = frozenset({None, "tls_handshake_failed", "grpc_core_message", "stderr_output"})
_FLOOD_KINDS = 1000


@contextmanager
def writing(
    level: str,
    style: str,
    redact: Callable[[str], str],
    *,
    buffer_bytes: int,
    worker: int | None = None,
    capture: bool = False,
) -> Iterator[None]:
    """Write all logs of this process to stderr inside the context, without ever blocking; complete them on exit.

    `style`: `json`, `text`, or `auto` for text on a terminal. `buffer_bytes`: size of the backlog while stderr is not
    read. `worker`: the number of this worker, if there are several; each line contains it. `capture`: other output on
    stderr becomes log lines too.
    """
    with ExitStack() as stack:
        stderr = os.dup(2) if capture else 2  # stays open, because the log's thread can still be writing to it
        writer = LogWriter(stderr, buffer_bytes)
        stack.callback(writer.finish)
        if style == "auto":
            style = "text" if writer.is_terminal else "json"
        writer.addFilter(_FloodFilter())
        configure(writer, level, style, redact, worker)
        if capture:
            stack.enter_context(captured_stderr(stderr))
        yield


def configure(
    handler: logging.Handler, level: str, style: str, redact: Callable[[str], str], worker: int | None = None
) -> None:
    """Send all logs of this process to the handler."""
    handler.setFormatter(_Json(redact) if style == "json" else _Text(redact))
    if worker is not None:
        handler.addFilter(lambda record: record.__dict__.setdefault("worker", worker) is not None)
    # Off, because these fields take half the time of a record and no line shows them (logging HOWTO, "Optimization").
    logging._srcfile = None
    for unused in ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):
        setattr(logging, unused, False)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Set the lowest severity that is logged."""
    logging.getLogger().setLevel(level.upper())


def without_values(error: BaseException) -> str:
    """Return the frames and the type of an exception, without its message, which can quote a caller's text."""
    import traceback

    return "".join([*traceback.format_tb(error.__traceback__), type(error).__qualname__])


class _FloodFilter(logging.Filter):
    """Drops similar messages of libraries above a rate. `suppressed` of the next line is their number."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[object, ...], list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        event = getattr(record, "event", None)
        if event not in _FLOOD_EVENTS:
            return True
        kind = (record.name, event, getattr(record, "source", None), str(record.msg) if event is None else None)
        if len(self._seen) > _FLOOD_KINDS:
            self._seen.clear()
        now = time.monotonic()
        window = self._seen.setdefault(kind, [now, 0, 0])
        if now - window[0] >= _FLOOD_SECONDS:
            if window[2]:
                record.suppressed = int(window[2])
            window[:] = now, 0, 0
        window[1] += 1
        if window[1] <= _FLOOD_LINES:
            return True
        window[2] += 1
        return False


class _Formatter(logging.Formatter):
    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._redact = redact


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = _line(record)
        if record.exc_info and record.exc_info[1]:
            line["exception"] = without_values(record.exc_info[1])
        shown = {name: value if isinstance(value, _PLAIN) else str(value) for name, value in line.items()}
        # First search all values at once, because secrets are rare. Then redact each value, because a redaction of the
        # finished line could break its JSON.
        texts = "\n".join([value for value in shown.values() if type(value) is str])
        if self._redact(texts) != texts:
            shown = {name: self._redact(value) if type(value) is str else value for name, value in shown.items()}
        try:
            return orjson.dumps(shown).decode()
        except TypeError:  # a lone surrogate, an integer past 64 bits
            return json.dumps(shown)


class _Text(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = _line(record)
        ts, level = line.pop("ts"), line.pop("level")
        event, message = line.pop("event"), line.pop("message", "")
        sentence = f"{event}: {message}" if message else event
        fields = " ".join(f"{name}={_plain(value)}" for name, value in line.items())
        text = f"{ts} {level:7} {sentence}  {fields}".rstrip()
        if record.exc_info and record.exc_info[1]:
            text = f"{text}\n{without_values(record.exc_info[1])}"
        return self._redact(text)


def _plain(value: Any) -> str:
    """Return a value as text, in quotes if it could look like another field or line."""
    text = str(value)
    return text if text.isprintable() and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    second, milliseconds = divmod(int(record.created * 1000), 1000)
    return f"{_second(second)}.{milliseconds:03}Z"


@lru_cache(maxsize=2)
def _second(unix_time: int) -> str:
    return datetime.fromtimestamp(unix_time, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _line(record: logging.LogRecord) -> dict[str, Any]:
    """Return the line's fields in order. Omit the message if it only repeats the event code."""
    line: dict[str, Any] = {"ts": _time(record), "level": record.levelname.lower(), "event": _LIBRARY_EVENT}
    event = getattr(record, "event", None)
    if event is None:
        line["logger"] = record.name
        message = _library_message(record)
    else:
        message = record.getMessage()
    if message != event:
        line["message"] = message
    line.update((name, value) for name, value in vars(record).items() if name not in _STANDARD and value is not None)
    return line


def _library_message(record: logging.LogRecord) -> str:
    """Return the message without the texts in it, because they can quote a caller or an upstream."""
    if not isinstance(record.msg, str):
        return type(record.msg).__qualname__
    message = record.msg
    if isinstance(record.args, tuple):
        with suppress(TypeError, ValueError):  # such as %x for an object that is no number
            message %= tuple(value if isinstance(value, _PLAIN) else _WITHHELD for value in record.args)
    return (_REPRESENTATION if record.name == "asyncio" else _LINE_END).split(message, maxsplit=1)[0].strip()
