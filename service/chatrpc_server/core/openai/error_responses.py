"""Maps the upstream's error responses to exceptions.

Providers agree on the status but not on the body: an object or a text under `error`, a flat object, `detail`, a list of
one, HTML. The tables are those of the contract (protos/chatrpc/v1/chat_error.proto).
"""

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import isnan, nan
from typing import Any

from chatrpc.v1.chat_error_pb2 import UpstreamError
from chatrpc_server.core.errors import ErrorResponse, InvalidResponse, Reason, UpstreamFault
from chatrpc_server.core.openai import jsontext
from chatrpc_server.core.text import clip

MESSAGE_BYTES = 2048
RAW_BODY_BYTES = 4096
FIELD_BYTES = 128
"""Size limits, higher than those for callers: a key that is cut here is not redacted, and the later cut removes it."""
_MAX_RETRY_AFTER_SECONDS = 1e9
"""A longer wait is cut, because it would not fit a `google.protobuf.Duration`."""

_BY_STATUS = {
    400: Reason.UPSTREAM_INVALID_REQUEST,
    401: Reason.UPSTREAM_UNAUTHENTICATED,
    402: Reason.UPSTREAM_INSUFFICIENT_BALANCE,
    403: Reason.UPSTREAM_FORBIDDEN,
    404: Reason.UPSTREAM_NOT_FOUND,
    405: Reason.UPSTREAM_UNIMPLEMENTED,
    408: Reason.UPSTREAM_TIMEOUT,
    409: Reason.UPSTREAM_CONFLICT,
    413: Reason.UPSTREAM_REQUEST_TOO_LARGE,
    415: Reason.UPSTREAM_UNPROCESSABLE,
    422: Reason.UPSTREAM_UNPROCESSABLE,
    429: Reason.UPSTREAM_RATE_LIMITED,
    500: Reason.UPSTREAM_INTERNAL,
    501: Reason.UPSTREAM_UNIMPLEMENTED,
    502: Reason.UPSTREAM_UNAVAILABLE,
    503: Reason.UPSTREAM_UNAVAILABLE,
    504: Reason.UPSTREAM_TIMEOUT,
    520: Reason.UPSTREAM_UNAVAILABLE,
    521: Reason.UPSTREAM_UNAVAILABLE,
    522: Reason.UPSTREAM_UNAVAILABLE,
    523: Reason.UPSTREAM_UNAVAILABLE,
    524: Reason.UPSTREAM_TIMEOUT,
    529: Reason.UPSTREAM_OVERLOADED,
}
_BY_STATUS_AND_CODE = {
    (400, "context_length_exceeded"): Reason.UPSTREAM_CONTEXT_LENGTH_EXCEEDED,
    (400, "string_above_max_length"): Reason.UPSTREAM_CONTEXT_LENGTH_EXCEEDED,
    (400, "content_filter"): Reason.UPSTREAM_CONTENT_FILTERED,
    (400, "content_policy_violation"): Reason.UPSTREAM_CONTENT_FILTERED,
    (400, "model_not_found"): Reason.UPSTREAM_MODEL_NOT_FOUND,
    (403, "moderation"): Reason.UPSTREAM_MODERATED,
    (403, "content_filter"): Reason.UPSTREAM_MODERATED,
    (404, "model_not_found"): Reason.UPSTREAM_MODEL_NOT_FOUND,
    (404, "DeploymentNotFound"): Reason.UPSTREAM_MODEL_NOT_FOUND,
    (429, "insufficient_quota"): Reason.UPSTREAM_QUOTA_EXHAUSTED,
    (503, "overloaded_error"): Reason.UPSTREAM_OVERLOADED,
    (503, "overloaded"): Reason.UPSTREAM_OVERLOADED,
}
_STATUS_OF_CODE = {
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "tool_use_failed": 400,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "server_error": 500,
    "api_error": 500,
    "internal_error": 500,
    "service_unavailable": 503,
    "overloaded": 503,
    "overloaded_error": 503,
    "timeout": 504,
}
"""HTTP status of an error object in a 200, by its `code` or `type`."""


def parse(http_status: int, headers: Mapping[str, str], body: bytes, now: float) -> UpstreamFault:
    """Return the exception for a status other than 200. `headers` by lower-case name; `now` in Unix seconds."""
    if http_status < 400:
        # A redirect could send the key to another host.
        problem = "; redirects are not followed" if http_status >= 300 else " instead of 200"
        return InvalidResponse(f"the upstream responded with HTTP {http_status}{problem}", "unexpected_content")
    error = _error_object(_loads(body), certain=True)
    detail = _detail(http_status, error, body)
    detail.request_id = clip(headers.get("x-request-id", ""), FIELD_BYTES)
    return ErrorResponse(
        _reason(http_status, detail),
        http_status,
        detail,
        retry_after_seconds=_retry_after(headers, now),
        should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "")),
    )


def error_in_success(source: Any, body: bytes, *, certain: bool = False) -> ErrorResponse | None:
    """Return the exception for JSON that holds an error despite status 200, or None if it holds no error.

    `certain`: JSON of any shape is an error, because it comes from an `error` event.
    """
    error = _error_object(source, certain=certain)
    if error is None:
        return None
    detail = _detail(200, error, body)
    status = _status_of(detail)
    return ErrorResponse(
        _reason(status, detail) if status else Reason.UPSTREAM_ERROR_BODY, status or 500, detail, in_success=True
    )


def _error_object(source: Any, *, certain: bool) -> dict[str, Any] | None:
    """Return the object that describes the error, from any of the known shapes."""
    if isinstance(source, list) and source and isinstance(source[0], dict) and source[0].get("error"):
        source = source[0]
    if not isinstance(source, dict):
        return {"message": source} if certain and isinstance(source, str) else {} if certain else None
    error = source.get("error")
    if isinstance(error, dict):
        return error
    if error:
        return {**source, "message": error if isinstance(error, str) else source.get("message")}
    if certain or source.get("object") == "error":
        return source if source.get("message") else {**source, "message": source.get("detail")}
    return None


def _detail(http_status: int, error: dict[str, Any] | None, body: bytes) -> UpstreamError:
    error = error or {}
    detail = UpstreamError(http_status=http_status)
    detail.message = clip(_text(error.get("message")) or _standard_message(http_status), MESSAGE_BYTES)
    for key in ("type", "param", "code"):
        text = _text(error.get(key))
        if text:
            setattr(detail, key, clip(text, FIELD_BYTES))
    text = body.decode("utf-8", "replace")
    detail.raw_body = clip(text, RAW_BODY_BYTES)
    detail.raw_body_truncated = len(detail.raw_body) < len(text)
    return detail


def _reason(status: int, detail: UpstreamError) -> Reason:
    for code in (detail.code, detail.type):
        reason = _BY_STATUS_AND_CODE.get((status, code))
        if reason is not None:
            return reason
    return _BY_STATUS.get(status, Reason.UPSTREAM_ERROR)


def _status_of(detail: UpstreamError) -> int | None:
    if detail.code.isdecimal() and 400 <= int(detail.code) < 600:
        return int(detail.code)
    return _STATUS_OF_CODE.get(detail.code) or _STATUS_OF_CODE.get(detail.type)


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the upstream's delay in seconds, from the headers that the OpenAI SDKs honour."""
    value = headers.get("retry-after", "")
    for seconds in (_number(headers.get("retry-after-ms", "")) / 1000, _number(value), _unix_time(value) - now):
        if not isnan(seconds):
            return min(max(0.0, seconds), _MAX_RETRY_AFTER_SECONDS)
    return None


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


def _standard_message(http_status: int) -> str:
    if http_status == 200:
        return "the upstream sent an error without a message"
    try:
        return f"the upstream responded with HTTP {http_status} {HTTPStatus(http_status).phrase}"
    except ValueError:
        return f"the upstream responded with HTTP {http_status}"


def _loads(body: bytes) -> Any:
    try:
        return jsontext.loads_leniently(body)
    except ValueError:
        return None


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return jsontext.dumps(value).decode()
    except ValueError:
        return ""
