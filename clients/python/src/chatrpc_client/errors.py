"""Typed errors of failed calls: the gRPC status with all details that chatrpc sends.

The details are those of `google.rpc.Status` (google/rpc/error_details.proto). The table in chatrpc/v1/chat_error.proto
lists the reasons.
"""

from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from chatrpc.v1.chat_error_pb2 import UpstreamError

_DETAILS_KEY = "grpc-status-details-bin"
_REQUEST_ID_KEY = "x-request-id"


class ChatError(Exception):
    """A failed call. `code` determines the subclass; `reason` distinguishes the cases of one code."""

    def __init__(self, code: grpc.StatusCode, message: str, details: Status, request_id: str) -> None:
        self.code = code
        """The gRPC status code."""
        self.message = message
        """The status's message."""
        self.reason = ""
        """A reason such as `UPSTREAM_RATE_LIMITED`. Empty if gRPC itself made the status, since it sends no details."""
        self.mapped_reason = ""
        """For `UPSTREAM_ERROR_BODY`, the reason to which the upstream's error maps. Empty if that is unknown."""
        self.retry_after: float | None = None
        """Seconds after which a retry may succeed. None if the response did not contain a time."""
        self.fields: list[tuple[str, str]] = []
        """The invalid fields of the request: path and description of each."""
        self.request_id = request_id
        """The call's id in the service's logs. Empty if nothing arrived from the service."""
        self.upstream_request_id = ""
        """The call's id in the upstream's logs. Empty if the upstream sent none."""
        self.upstream: UpstreamError | None = None
        """The upstream's error. None if the upstream did not respond."""
        self._arguments = (code, message, details, request_id)
        with suppress(DecodeError):  # details of another service
            self._read(details)
        super().__init__(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        """Make the error picklable, so that it passes between processes."""
        return type(self), self._arguments

    @property
    def upstream_status(self) -> int | None:
        """The upstream's HTTP status. None if the upstream did not respond."""
        return self.upstream.http_status if self.upstream else None

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.code.name}{reason}: {self.message}"

    def _read(self, details: Status) -> None:
        info, retry, bad, request = ErrorInfo(), RetryInfo(), BadRequest(), RequestInfo()
        upstream = UpstreamError()
        for detail in details.details:
            if detail.Unpack(info):
                self.reason, self.mapped_reason = info.reason, info.metadata.get("mapped_reason", "")
            elif detail.Unpack(retry):
                self.retry_after = retry.retry_delay.ToNanoseconds() / 1e9
            elif detail.Unpack(bad):
                self.fields += [(violation.field, violation.description) for violation in bad.field_violations]
            elif detail.Unpack(request):
                self.upstream_request_id = request.request_id if request.request_id != self.request_id else ""
            elif detail.Unpack(upstream):
                self.upstream = upstream


class InvalidRequestError(ChatError):
    """INVALID_ARGUMENT: the request is invalid; `fields` may name the fields."""


class NotFoundError(ChatError):
    """NOT_FOUND: the model is unknown, or the upstream has no such path."""


class PermissionDeniedError(ChatError):
    """PERMISSION_DENIED or UNAUTHENTICATED."""


class PreconditionError(ChatError):
    """FAILED_PRECONDITION or ABORTED: the account or a conflicting state prevents the call."""


class RateLimitError(ChatError):
    """RESOURCE_EXHAUSTED: too many calls, too many tokens, no quota left, or a message that is too large."""


class DeadlineError(ChatError):
    """DEADLINE_EXCEEDED: the call's timeout has passed, or the upstream was silent for too long."""


class CancelledError(ChatError):
    """CANCELLED: the caller cancelled, or the server stopped before it began the call."""


class UnavailableError(ChatError):
    """UNAVAILABLE: not reached, draining, overloaded, or a truncated stream. A retry may succeed."""


class UnimplementedError(ChatError):
    """UNIMPLEMENTED: the service or its upstream does not support this."""


class InternalError(ChatError):
    """INTERNAL and every other code: the caller cannot correct the cause."""


_ERROR_TYPES: dict[grpc.StatusCode, type[ChatError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDeniedError,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionError,
    grpc.StatusCode.ABORTED: PreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RateLimitError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
}


def from_rpc_error(error: Any) -> ChatError:
    """Return the typed error for a `grpc.RpcError` of `grpc` or `grpc.aio`."""
    code = error.code() or grpc.StatusCode.UNKNOWN
    metadata: dict[str, Any] = {**dict(error.initial_metadata() or ()), **dict(error.trailing_metadata() or ())}
    details = Status()
    try:
        details.ParseFromString(metadata.get(_DETAILS_KEY, b""))
    except DecodeError:
        details = Status()  # details of another service
    message = error.details() or "no message"
    return _ERROR_TYPES.get(code, InternalError)(code, message, details, str(metadata.get(_REQUEST_ID_KEY, "")))
