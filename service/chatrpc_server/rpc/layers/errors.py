"""Layer: maps every exception to the `google.rpc.Status` for the caller. `CODES` is the only table of codes.

An unexpected exception is logged with its frames; the caller receives INTERNAL and the request id. The caller receives
the upstream's error clipped and without keys. The text of a 401 is withheld, because it concerns the service's key.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from urllib.parse import quote

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details_pb2
from google.rpc.status_pb2 import Status

from chatrpc.v1.chat_error_pb2 import UpstreamError
from chatrpc_server.core.call import Call
from chatrpc_server.core.errors import ChatError, ErrorResponse, InvalidRequest, MissingKey, Reason, UpstreamFault
from chatrpc_server.core.text import Redactor, clip
from chatrpc_server.rpc.pipeline import Context
from chatrpc_server.rpc.unread import UnreadCalls

log = logging.getLogger(__name__)

DOMAIN = "chatrpc.dev"
"""`ErrorInfo.domain` of every reason."""
DETAILS_KEY = "grpc-status-details-bin"

CODES = {
    Reason.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UPSTREAM_INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UPSTREAM_CONTEXT_LENGTH_EXCEEDED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UPSTREAM_CONTENT_FILTERED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UPSTREAM_REQUEST_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UPSTREAM_UNPROCESSABLE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UPSTREAM_MODEL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.UPSTREAM_MODERATED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.UPSTREAM_INSUFFICIENT_BALANCE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.UPSTREAM_QUOTA_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.UPSTREAM_RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.IN_FLIGHT_LIMIT: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.RESPONSE_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.SERVER_DRAINING: grpc.StatusCode.UNAVAILABLE,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
    Reason.UPSTREAM_UNAUTHENTICATED: grpc.StatusCode.INTERNAL,
    Reason.UPSTREAM_FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Reason.UPSTREAM_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.UPSTREAM_UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Reason.UPSTREAM_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.UPSTREAM_CONFLICT: grpc.StatusCode.ABORTED,
    Reason.UPSTREAM_INTERNAL: grpc.StatusCode.INTERNAL,
    Reason.UPSTREAM_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.UPSTREAM_OVERLOADED: grpc.StatusCode.UNAVAILABLE,
    Reason.UPSTREAM_ERROR: grpc.StatusCode.INTERNAL,  # FAILED_PRECONDITION for a 4xx, see `code_of`
    Reason.UPSTREAM_UNREACHABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.UPSTREAM_INVALID_RESPONSE: grpc.StatusCode.INTERNAL,
    Reason.UPSTREAM_TRUNCATED: grpc.StatusCode.UNAVAILABLE,
    Reason.UPSTREAM_ERROR_BODY: grpc.StatusCode.INTERNAL,
}

CALLERS_REASONS = frozenset(
    {
        Reason.INVALID_REQUEST,
        Reason.DEADLINE_EXCEEDED,
        Reason.UPSTREAM_INVALID_REQUEST,
        Reason.UPSTREAM_CONTEXT_LENGTH_EXCEEDED,
        Reason.UPSTREAM_CONTENT_FILTERED,
        Reason.UPSTREAM_REQUEST_TOO_LARGE,
        Reason.UPSTREAM_UNPROCESSABLE,
        Reason.UPSTREAM_MODEL_NOT_FOUND,
        Reason.UPSTREAM_MODERATED,
    }
)
"""Reasons whose fault is the caller's. All others are the service's or the upstream's fault."""
MESSAGE_BYTES = 1024
RAW_BODY_BYTES = 2048
_DESCRIPTION_BYTES = 256
_STATUS_BYTES = 6000
"""Encoded size of message and details. Some clients accept only 8 KiB of trailers, including other metadata."""
_ABORT_SECONDS = 2.0
"""Longest wait for sending the status of a call."""


class ErrorStatus:
    """The layer that fails RPCs. `redact` removes keys from a text."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._unread = UnreadCalls()

    @asynccontextmanager
    async def __call__(self, call: Call, context: Context) -> AsyncIterator[None]:
        """Fail the RPC with the status of the exception raised inside."""
        try:
            yield
        except ChatError as error:
            call.reason = _public_reason(error)
            call.mapped_reason = error.reason if error.reason != call.reason else ""
            if error.reason is Reason.UPSTREAM_UNAUTHENTICATED and not _concerns_callers_key(error, call):
                log.error(
                    "upstream rejected the service's API key; check upstream.api_key",
                    extra={"event": "upstream_key_rejected"},
                )
            await self._abort(error, call, context)
        except grpc.aio.BaseError:
            raise  # because the caller disconnected during a write, no status can be sent
        except Exception:
            call.reason = Reason.INTERNAL
            log.exception("unexpected error in a call", extra={"event": "unexpected_error", "request_id": call.id})
            await self._abort(ChatError("internal error"), call, context)

    async def _abort(self, error: ChatError, call: Call, context: Context) -> None:
        status = status_of(error, call, self._redactor(call))
        metadata = [("x-request-id", call.id), *call.response_metadata, (DETAILS_KEY, status.SerializeToString())]
        try:
            async with asyncio.timeout(_ABORT_SECONDS):
                await context.abort(code_of(error, call), status.message, tuple(metadata))
        except TimeoutError:
            # The caller does not read, so a message before the status would block it without limit.
            self._unread.end_current()
            raise asyncio.CancelledError from None

    def _redactor(self, call: Call) -> Callable[[str], str]:
        """Return a function that also removes the caller's own key."""
        if not call.callers_key:
            return self._redact
        callers, ours = Redactor([call.callers_key]), self._redact
        return lambda text: ours(callers(text))


def _concerns_callers_key(error: ChatError, call: Call) -> bool:
    return bool(call.callers_key) or isinstance(error, MissingKey)


def code_of(error: ChatError, call: Call) -> grpc.StatusCode:
    """Return the gRPC code for an exception."""
    if error.reason is Reason.UPSTREAM_UNAUTHENTICATED and _concerns_callers_key(error, call):
        return grpc.StatusCode.UNAUTHENTICATED
    if error.reason is Reason.UPSTREAM_ERROR and isinstance(error, ErrorResponse) and error.status < 500:
        return grpc.StatusCode.FAILED_PRECONDITION
    return CODES[error.reason]


def status_of(error: ChatError, call: Call, redact: Callable[[str], str]) -> Status:
    """Return the rich status for an exception, small enough for every client."""
    detail = error.detail if isinstance(error, UpstreamFault) else None
    own_key = detail is not None and detail.http_status == HTTPStatus.UNAUTHORIZED
    own_key = own_key and not call.callers_key
    message = "the upstream rejected this service's credentials" if own_key else _clip_message(redact(error.message))
    status = Status(code=code_of(error, call).value[0], message=message)
    _add(status, _error_info(error))
    if error.retry_after_seconds is not None and error.reason is not Reason.UPSTREAM_QUOTA_EXHAUSTED:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        _add(status, details_pb2.RetryInfo(retry_delay=delay))
    field, description = _violation(error)
    if field:
        violation = details_pb2.BadRequest.FieldViolation(
            field=redact(field), description=clip(redact(description), _DESCRIPTION_BYTES), reason=error.reason
        )
        _add(status, details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, ErrorResponse) and error.status in (402, 429):
        description = clip(message, _DESCRIPTION_BYTES)
        violations = [details_pb2.QuotaFailure.Violation(subject="upstream", description=description)]
        _add(status, details_pb2.QuotaFailure(violations=violations))
    attempt = call.last_attempt
    _add(status, details_pb2.RequestInfo(request_id=(attempt.request_id if attempt else "") or call.id))
    if detail is not None:
        _add(status, _upstream_error(status, detail, redact, withhold=own_key))
    return status


def _public_reason(error: ChatError) -> Reason:
    return Reason.UPSTREAM_ERROR_BODY if isinstance(error, ErrorResponse) and error.in_success else error.reason


def _error_info(error: ChatError) -> details_pb2.ErrorInfo:
    info = details_pb2.ErrorInfo(reason=_public_reason(error), domain=DOMAIN)
    if info.reason != error.reason:
        info.metadata["mapped_reason"] = error.reason
    if isinstance(error, ErrorResponse):
        info.metadata["http_status"] = str(error.detail.http_status)
    return info


def _violation(error: ChatError) -> tuple[str, str]:
    if isinstance(error, InvalidRequest):
        return error.field, error.description
    if isinstance(error, ErrorResponse) and error.status in (400, 422):
        return error.detail.param, error.message
    return "", ""


def _clip_message(message: str) -> str:
    """Clip a message so that the details also fit, because it is sent twice, once percent-encoded."""
    message = clip(message, MESSAGE_BYTES)
    while len(quote(message)) > 2 * MESSAGE_BYTES:
        message = message[: len(message) * 7 // 8]
    return message


def _upstream_error(
    status: Status, original: UpstreamError, redact: Callable[[str], str], *, withhold: bool
) -> UpstreamError:
    """Return the upstream's error without keys, its body clipped to the remaining space.

    `withhold`: keep only status and request id.
    """
    detail = UpstreamError(http_status=original.http_status, request_id=redact(original.request_id))
    if withhold:
        return detail
    detail.message = status.message
    for name in ("type", "param", "code"):
        if original.HasField(name):
            setattr(detail, name, redact(getattr(original, name)))
    available = _STATUS_BYTES - len(quote(status.message)) - (status.ByteSize() + detail.ByteSize()) * 4 // 3
    body = redact(original.raw_body)
    detail.raw_body = clip(body, min(RAW_BODY_BYTES, max(0, available * 3 // 4)))
    detail.raw_body_truncated = original.raw_body_truncated or len(detail.raw_body) < len(body)
    return detail


def _add(status: Status, detail: Message) -> None:
    status.details.add().Pack(detail)
