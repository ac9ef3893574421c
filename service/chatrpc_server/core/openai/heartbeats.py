"""Events that are no chunks: the marks of the end, and heartbeats that keep a connection alive.

OpenAI ends a stream with `[DONE]` and sends no heartbeats. Other servers write the mark differently, and send comments,
`ping`, `null` or a time stamp as heartbeats. A JSON object of an event without such a type is forwarded as it is.
"""

import re

_MARK = re.compile(rb"[^\w{]*(?:done|end|eof)[^\w{]*", re.IGNORECASE)
"""A mark of the end with any signs around it: `[DONE]`, `"[done]"`, `["DONE"]`, `[END]`."""
_DONE = b"[DONE]"
_MAX_BYTES = 64
"""A longer text is no heartbeat."""
_FAILURE = re.compile(
    rb"error|fail|invalid|denied|unauthorized|forbidden|exceed|limit|time.?out|unavailable|overload|not found|abort",
    re.IGNORECASE,
)
"""Words of an error, which is no heartbeat either."""
_NAMES = frozenset(("ping", "pong", "heartbeat", "keepalive", "keep-alive", "keep_alive"))
"""Types of events that are heartbeats, and texts of events that are some."""
_SIGNS = " \t\r\"'`[]()<>:.!*-"
_TIME = re.compile(r"[0-9tz:.,+ -]+")
"""A number, or a time as in RFC 3339."""


def ends_stream(payload: bytes) -> bool:
    """Return whether the data of an event is a mark of the end. Text can follow `[DONE]`."""
    return payload.startswith(_DONE) or (len(payload) <= _MAX_BYTES and _MARK.fullmatch(payload) is not None)


def is_text(payload: bytes) -> bool:
    """Return whether the data of an event is a heartbeat without a JSON object: a short text that is no error."""
    text = payload.strip()
    return (
        len(text) <= _MAX_BYTES
        and not text.startswith(b"<")
        and b"{" not in text
        and b"\n" not in text
        and not _FAILURE.search(text)
    )


def is_known(payload: bytes) -> bool:
    """Return whether a short text is one of the usual heartbeats: a name such as `[PING]`, null, a number or a time."""
    text = payload.decode("ascii", "replace").strip(_SIGNS).lower()
    return text in _NAMES or text in ("", "null", "none", "true") or _TIME.fullmatch(text) is not None


def is_named(kind: str, payload: bytes) -> bool:
    """Return whether an event's type says that it is a heartbeat."""
    return kind.lower() in _NAMES and b'"choices"' not in payload


def is_foreign(kind: str, payload: bytes) -> bool:
    """Return whether an event's type and data show that it is no chunk, even if it is not JSON."""
    return kind not in ("message", "error") and b'"choices"' not in payload
