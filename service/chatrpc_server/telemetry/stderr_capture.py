"""Turns all other output on stderr into log lines: gRPC's core and Python itself write there without `logging`.

Such a write would stand as text among JSON lines, unredacted, and would block its thread while stderr is a full pipe.
"""

import faulthandler
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from chatrpc_server.core.text import clip

log = logging.getLogger("chatrpc.stderr")

_SHOWN_BYTES = 1000
_MESSAGE = re.compile(r"(?P<severity>[IWEF])\d{4} [\d:.]+ +\d+ (?P<source>[^\]\s]+)\] (?P<text>.*)\n?")
_START = re.compile(r"^(?=[IWEF]\d{4} \d\d:)", re.MULTILINE)
"""A message of gRPC's core, in the format of its logging library (absl)."""
_FRAME_OR_TYPE = re.compile(r"^(?: *File \".*|[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)(?=:|$))", re.MULTILINE)
_TRACE = "=== Source Location Trace"
"""The start of further lines of such a message, up to an empty one."""


@contextmanager
def captured_stderr() -> Iterator[int]:
    """Yield the descriptor of stderr for the log. Inside the context, descriptor 2 leads into the log."""
    stderr = os.dup(2)
    reading, writing = os.pipe()
    # A full pipe loses output instead of blocking its writer, which can hold the GIL that the reader needs.
    os.set_blocking(writing, False)
    os.dup2(writing, 2)
    os.close(writing)
    faulthandler.enable(stderr)  # because output of a crash would be lost in the pipe
    reader = threading.Thread(target=_read, args=(reading,), name="stderr reader", daemon=True)
    reader.start()
    previous = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = _on_unraisable, _on_thread_error
    logging.captureWarnings(True)
    try:
        yield stderr
    finally:
        logging.captureWarnings(False)
        sys.unraisablehook, threading.excepthook = previous
        faulthandler.disable()
        os.dup2(stderr, 2)  # closes the pipe
        reader.join(1.0)  # `stderr` stays open, because the log's thread can still be writing to it


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


def _read(pipe: int) -> None:
    while data := os.read(pipe, 65536):
        for message in _START.split(data.decode("utf-8", "replace")):
            core = _MESSAGE.match(message)
            if core:
                _log_core_message(core)
                message = message[core.end() :]
                if message.startswith(_TRACE):
                    message = message.partition("\n\n")[2]
            other = clip(_without_values(message.strip()), _SHOWN_BYTES)
            if other:
                log.warning("output on stderr", extra={"event": "stderr_output", "output": other})
    os.close(pipe)


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
