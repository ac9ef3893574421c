"""The time to wait before a retry, by the headers of an error response and then by its body."""

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import isnan, nan

from chatrpc_server.core.openai.error_bodies import FoundError

_MAX_SECONDS = 1e9
"""A longer wait is cut, because it would not fit a `google.protobuf.Duration`."""
_STATUSES = frozenset({408, 409, 425, 429, 498, 499})
"""Statuses below 500 that can pass. Other errors name no time, so that words that look like one do not count."""


def of_error(headers: Mapping[str, str], now: float, http_status: int, found: FoundError) -> float | None:
    """Return the upstream's delay in seconds. `headers` by lower-case name; `now` in Unix seconds."""
    value = headers.get("retry-after", "")
    for seconds in (_number(headers.get("retry-after-ms", "")) / 1000, _number(value), _unix_time(value) - now):
        if not isnan(seconds):
            return min(max(0.0, seconds), _MAX_SECONDS)
    wait = found.wait() if http_status in _STATUSES or http_status >= 500 else None
    return None if wait is None else min(max(0.0, wait), _MAX_SECONDS)


def _number(text: str) -> float:
    """Return the number, or NaN if the text is invalid."""
    try:
        return float(text)
    except ValueError:
        return nan


def _unix_time(text: str) -> float:
    """Return the time of an HTTP date, or NaN if the text is invalid."""
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return nan
