"""Turns all other output on stderr into log lines: gRPC's core and Python itself write there without `logging`.

Such a write would stand as text among JSON lines, unredacted, and would block its thread while stderr is a full pipe.
"""

import faulthandler
import logging
import os
import re
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from chatrpc_server.core.text import clip

log = logging.getLogger("chatrpc.stderr")

_READ_BYTES = 65536
_SHOWN_BYTES = 1000
_FINISH_SECONDS = 5.0
"""Longest wait for output at the end. A child process that writes without pause would extend it for ever."""
_MESSAGE = re.compile(r"(?P<severity>[IWEF])\d{4} [\d:.]+ +\d+ (?P<source>[^\]\s]+)\] (?P<text>.*)\n?")
_START = re.compile(r"^(?=[IWEF]\d{4} \d\d:)", re.MULTILINE)
"""A message of gRPC's core, in the format of its logging library (absl)."""
_FRAME_OR_TYPE = re.compile(r"^(?: *File \".*|[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)(?=:|$))", re.MULTILINE)
_TRACE = "=== Source Location Trace"
"""The start of further lines of such a message, up to an empty one."""


@contextmanager
def captured_stderr(stderr: int) -> Iterator[None]:
    """Inside the context, lead descriptor 2 into the log. `stderr`: a duplicate of it, to which the log is written."""
    reading, writing = os.pipe()
    stop_reading, stop_writing = os.pipe()
    # A full pipe loses output instead of blocking its writer, which can hold the GIL that the reader needs.
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    os.dup2(writing, 2)
    os.close(writing)
    faulthandler.enable(stderr)  # because output of a crash would be lost in the pipe
    reader = threading.Thread(target=_read, args=(reading, stop_reading), name="stderr reader", daemon=True)
    reader.start()
    previous = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = _on_unraisable, _on_thread_error
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        sys.unraisablehook, threading.excepthook = previous
        faulthandler.disable()
        os.dup2(stderr, 2)
        # Not the end of the pipe, because a child process can still have it open.
        os.close(stop_writing)
        reader.join(_FINISH_SECONDS)


def _on_unraisable(error: "sys.UnraisableHookArgs") -> None:
    _log_uncaught(getattr(error.object, "__qualname__", type(error.object).__qualname__), error.exc_value)


def _on_thread_error(error: threading.ExceptHookArgs) -> None:
    if error.exc_type is not SystemExit:
        _log_uncaught(error.thread.name if error.thread else "thread", error.exc_value)


def _log_uncaught(where: str, error: BaseException | None) -> None:
    exc_info: tuple[type[BaseException], BaseException, TracebackType | None] | None = (
        (type(error), error, error.__traceback__) if error else None
    )
    log.error("uncaught exception", extra={"event": "uncaught_exception", "where": where}, exc_info=exc_info)


def _read(pipe: int, stop: int) -> None:
    """Log all output of the pipe until the other end of `stop` is closed, then what the pipe still contains."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    poll.register(stop, select.POLLIN)
    is_open = True
    while is_open:
        is_open = all(descriptor != stop for descriptor, _ in poll.poll())
        with suppress(BlockingIOError):
            while data := os.read(pipe, _READ_BYTES):
                _log_output(data.decode("utf-8", "replace"))
            is_open = False  # all descriptors of the other end are closed
    os.close(pipe)
    os.close(stop)


def _log_output(text: str) -> None:
    for message in _START.split(text):
        core = _MESSAGE.match(message)
        if core:
            _log_core_message(core)
            message = message[core.end() :]
            if message.startswith(_TRACE):
                message = message.partition("\n\n")[2]
        other = clip(_without_values(message.strip()), _SHOWN_BYTES)
        if other:
            log.warning("output on stderr", extra={"event": "stderr_output", "output": other})


def _without_values(text: str) -> str:
    """Return only frames and types of a printed exception, because its message can quote a caller's text."""
    return "\n".join(_FRAME_OR_TYPE.findall(text)) if "Traceback (most recent call last)" in text else text


def _log_core_message(core: re.Match[str]) -> None:
    text = clip(core["text"], _SHOWN_BYTES)
    if text.startswith("Handshake failed"):
        log.warning("TLS handshake with a caller failed", extra={"event": "tls_handshake_failed", "cause": text})
    elif core["severity"] == "I":
        log.info(text, extra={"event": "grpc_core_message", "source": core["source"]})
    else:
        log.warning(text, extra={"event": "grpc_core_message", "source": core["source"]})
