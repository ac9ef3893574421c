"""Maps the upstream's error responses to exceptions.

`error_bodies.py` finds the error in a body, and the table of codes (`error_codes.py`) has its reason. The tables are
those of the contract (protos/chatrpc/v1/chat_error.proto).
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from chatrpc.v1.chat_error_pb2 import UpstreamError
from chatrpc_server.core.errors import ErrorResponse, InvalidResponse, Reason, UpstreamFault
from chatrpc_server.core.openai import error_bodies, error_codes, jsontext, response_headers, retry_delays, sse
from chatrpc_server.core.openai.error_bodies import FoundError
from chatrpc_server.core.text import clip

MESSAGE_BYTES = 2048
RAW_BODY_BYTES = 4096
FIELD_BYTES = 128
"""Size limits, higher than those for callers: a key that is cut here is not redacted, and the later cut removes it."""
_LOCATION_CHARACTERS = 200
_ENCODING_CHARACTERS = 20
_NO_REDIRECT = "redirects are not followed"
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")
"""Bytes that occur in no text, such as those of a compressed body."""


def parse(http_status: int, headers: Mapping[str, str], body: bytes, now: float) -> UpstreamFault:
    """Return the exception for a status that is no success. `headers` by lower-case name; `now` in Unix seconds."""
    request_id = response_headers.request_id(headers)
    if http_status < 400:
        # A redirect could send the key to another host.
        target = redirect_target(headers)
        problem = f"the upstream responded with HTTP {http_status}"
        problem += f" to {target}; {_NO_REDIRECT}; correct upstream.base_url" if target else f"; {_NO_REDIRECT}"
        detail = _detail(http_status, FoundError(message=problem), body, request_id)
        return InvalidResponse(problem, "unexpected_content", detail=detail)
    found = error_bodies.of_status(_value(body))
    encoding = headers.get("content-encoding", "")
    if not body and encoding not in ("", "identity"):
        found.message = f"{_standard_message(http_status)}; its body has the encoding {encoding[:_ENCODING_CHARACTERS]}"
    meaning = found.meaning(http_status)
    should_retry = {"true": True, "false": False}.get(headers.get("x-should-retry", ""))
    return ErrorResponse(
        error_codes.reason(http_status, meaning),
        http_status,
        _detail(http_status, found, body, request_id),
        retry_after_seconds=retry_delays.of_error(headers, now, http_status, found),
        should_retry=False if should_retry is None and found.is_daily else should_retry,
    )


_KEYS_OF_USAGE = frozenset(
    ("id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier", "obfuscation")
)
"""The keys of OpenAI's event with the usage, which has no choices."""


def error_in_success(
    source: Any, body: bytes, *, certain: bool = False, is_whole: bool = False
) -> ErrorResponse | None:
    """Return the exception for JSON that holds an error despite a status of success, or None if it holds no error.

    `certain` and `is_whole`: see `error_bodies.of_success`.
    """
    if not certain and type(source) is dict:  # at once for the usual events
        if source.get("choices") and not source.get("error"):
            return None
        if "usage" in source and source.keys() <= _KEYS_OF_USAGE:
            return None
    found = error_bodies.of_success(source, certain=certain, is_whole=is_whole)
    if found is None:
        return None
    meaning = found.meaning(found.status)
    status = found.status
    if status not in error_codes.BY_STATUS:
        status = (meaning.status if meaning else found.status_in_words()) or status
    return ErrorResponse(
        error_codes.reason(status, meaning) if status else Reason.UPSTREAM_ERROR_BODY,
        status or 500,
        _detail(200, found, body),
        in_success=True,
        retry_after_seconds=retry_delays.of_error({}, 0.0, status or 500, found),
        should_retry=False if found.is_daily else None,
    )


def invalid_response(problem: str, kind: InvalidResponse.Kind, body: bytes, **fields: bool) -> InvalidResponse:
    """Return the exception for a response of success that is no completion, with the start of it for the caller."""
    return InvalidResponse(problem, kind, detail=_detail(200, FoundError(message=problem), body), **fields)


def of_remains(problem: str, unknown: bytes) -> UpstreamError | None:
    """Return the details with the bytes of a stream that are no event, or None if it has none."""
    return _detail(200, FoundError(message=problem), unknown) if unknown else None


def redirect_target(headers: Mapping[str, str]) -> str:
    """Return the target of a redirect without a query or credentials, which can be secret; empty if there is none."""
    location = re.sub(r"(?<=//)[^/]*@", "", re.split(r"[?#]", headers.get("location", ""))[0])
    return location[:_LOCATION_CHARACTERS] if location.isascii() and location.isprintable() else ""


def _value(body: bytes) -> Any:
    """Return the JSON of an error body, that of its first event with an error, or its text. None if it has none."""
    try:
        return jsontext.loads_leniently(body)
    except ValueError:
        pass
    start = body.lstrip(b" \t\r\n\xef\xbb\xbf")
    if start.startswith((b"data:", b"event:", b"error:", b":", b"id:", b"retry:")):
        return _event(body)
    is_text = start and not start.startswith((b"<", b"{", b"[")) and not _NOT_TEXT.search(start)
    return start.decode("utf-8", "replace").strip() if is_text else None


def _event(body: bytes) -> Any:
    """Return the JSON of the first event that has some, or its text."""
    decoder, text = sse.Decoder(len(body)), None
    for _, payload in (*decoder.feed(body), *decoder.flush()):
        try:
            return jsontext.loads_leniently(payload)
        except ValueError:
            text = text or payload.decode("utf-8", "replace")
    return text


def _detail(http_status: int, found: FoundError, body: bytes, request_id: str = "") -> UpstreamError:
    detail = UpstreamError(http_status=http_status)
    detail.message = clip(found.message or _standard_message(http_status), MESSAGE_BYTES)
    for key in ("type", "param", "code"):
        text = getattr(found, key)
        if text:
            setattr(detail, key, clip(text, FIELD_BYTES))
    detail.request_id = clip(request_id or found.request_id, FIELD_BYTES)
    text = body[: 4 * RAW_BODY_BYTES].decode("utf-8", "replace")
    detail.raw_body = clip(text, RAW_BODY_BYTES)
    detail.raw_body_truncated = len(body) > 4 * RAW_BODY_BYTES or len(detail.raw_body) < len(text)
    return detail


def _standard_message(http_status: int) -> str:
    if http_status == 200:
        return "the upstream sent an error without a message"
    try:
        return f"the upstream responded with HTTP {http_status} {HTTPStatus(http_status).phrase}"
    except ValueError:
        return f"the upstream responded with HTTP {http_status}"
