"""All errors of a call, by the party at fault.

    ChatError
    ├── CallerError            the caller's
    │   ├── InvalidRequest       the request cannot be sent to an upstream
    │   ├── MissingKey           the call lacks its key for the upstream
    │   └── DeadlineExceeded     the call's deadline has expired
    ├── ServiceError           ours
    │   ├── Overloaded           a limit of what is in flight is reached
    │   │   └── Exhausted          this process has no file descriptor left
    │   ├── ResponseTooLarge     the response exceeds the size limit of messages
    │   └── Draining             this process is stopping
    └── UpstreamFault          the upstream's
        ├── Unreachable          no connection, or it closed before the response began
        ├── TimedOut             no data for longer than the settings allow
        ├── ErrorResponse        an HTTP error status, or an error object instead of a completion
        ├── InvalidResponse      not a chat completion
        └── Truncated            the response ended before the completion

`reason` is the caller's `google.rpc.ErrorInfo.reason`; `rpc/layers/errors.py` maps reasons to gRPC codes. Callers see
the messages, so they never hold a key. They are never logged, because an upstream can quote a prompt in them.
"""

from enum import StrEnum
from typing import Literal

from chatrpc.v1 import chat_error_pb2


class Reason(StrEnum):
    """The closed set of `ErrorInfo.reason` values."""

    INVALID_REQUEST = "INVALID_REQUEST"
    UPSTREAM_INVALID_REQUEST = "UPSTREAM_INVALID_REQUEST"
    UPSTREAM_CONTEXT_LENGTH_EXCEEDED = "UPSTREAM_CONTEXT_LENGTH_EXCEEDED"
    UPSTREAM_CONTENT_FILTERED = "UPSTREAM_CONTENT_FILTERED"
    UPSTREAM_REQUEST_TOO_LARGE = "UPSTREAM_REQUEST_TOO_LARGE"
    UPSTREAM_UNPROCESSABLE = "UPSTREAM_UNPROCESSABLE"
    UPSTREAM_MODEL_NOT_FOUND = "UPSTREAM_MODEL_NOT_FOUND"
    UPSTREAM_MODERATED = "UPSTREAM_MODERATED"
    UPSTREAM_INSUFFICIENT_BALANCE = "UPSTREAM_INSUFFICIENT_BALANCE"
    UPSTREAM_QUOTA_EXHAUSTED = "UPSTREAM_QUOTA_EXHAUSTED"
    UPSTREAM_RATE_LIMITED = "UPSTREAM_RATE_LIMITED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    IN_FLIGHT_LIMIT = "IN_FLIGHT_LIMIT"
    RESPONSE_TOO_LARGE = "RESPONSE_TOO_LARGE"
    SERVER_DRAINING = "SERVER_DRAINING"
    INTERNAL = "INTERNAL"
    UPSTREAM_UNAUTHENTICATED = "UPSTREAM_UNAUTHENTICATED"
    UPSTREAM_FORBIDDEN = "UPSTREAM_FORBIDDEN"
    UPSTREAM_NOT_FOUND = "UPSTREAM_NOT_FOUND"
    UPSTREAM_UNIMPLEMENTED = "UPSTREAM_UNIMPLEMENTED"
    UPSTREAM_TIMEOUT = "UPSTREAM_TIMEOUT"
    UPSTREAM_CONFLICT = "UPSTREAM_CONFLICT"
    UPSTREAM_INTERNAL = "UPSTREAM_INTERNAL"
    UPSTREAM_UNAVAILABLE = "UPSTREAM_UNAVAILABLE"
    UPSTREAM_OVERLOADED = "UPSTREAM_OVERLOADED"
    UPSTREAM_ERROR = "UPSTREAM_ERROR"
    UPSTREAM_UNREACHABLE = "UPSTREAM_UNREACHABLE"
    UPSTREAM_INVALID_RESPONSE = "UPSTREAM_INVALID_RESPONSE"
    UPSTREAM_TRUNCATED = "UPSTREAM_TRUNCATED"
    UPSTREAM_ERROR_BODY = "UPSTREAM_ERROR_BODY"


class ChatError(Exception):
    """A failure of a call. `retry_after_seconds`: the wait before a retry, if known."""

    reason: Reason = Reason.INTERNAL

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class CallerError(ChatError):
    """An error that the caller must fix."""


class InvalidRequest(CallerError):
    """A malformed request. `field` is a path such as `messages[0].role`."""

    reason = Reason.INVALID_REQUEST

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description

    def inside(self, parent: str) -> "InvalidRequest":
        """Return the same error with the path from the parent message."""
        return InvalidRequest(f"{parent}.{self.field}", self.description)


class DeadlineExceeded(CallerError):
    """A deadline that has expired, or leaves too little time to begin."""

    reason = Reason.DEADLINE_EXCEEDED


class MissingKey(CallerError):
    """A call without the key for the upstream that the settings require of callers."""

    reason = Reason.UPSTREAM_UNAUTHENTICATED


class ServiceError(ChatError):
    """A call that this process cannot accept or finish."""


class Overloaded(ServiceError):
    """A call beyond a limit of what is in flight. `limit` is that limit, for the metrics."""

    reason = Reason.IN_FLIGHT_LIMIT

    def __init__(
        self,
        message: str,
        *,
        limit: Literal["in_flight", "bytes", "receiving", "descriptors"] = "in_flight",
        retry_after_seconds: float = 1.0,
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.limit = limit


class Exhausted(Overloaded):
    """A call for which this process has no file descriptor or no memory left."""

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message, limit="descriptors", retry_after_seconds=retry_after_seconds)


class ResponseTooLarge(ServiceError):
    """A response that exceeds the size limit of messages."""

    reason = Reason.RESPONSE_TOO_LARGE


class Draining(ServiceError):
    """A call that was still running when the process stopped."""

    reason = Reason.SERVER_DRAINING


class UpstreamFault(ChatError):
    """A failure of the upstream. `detail` is the upstream's error, or what is no completion in its response."""

    reason = Reason.UPSTREAM_ERROR
    detail: chat_error_pb2.UpstreamError | None = None


class Unreachable(UpstreamFault):
    """A failed connect (DNS, refused, TLS, proxy), or a connection that closed before the response began.

    `is_transient`: whether a retry can succeed.
    """

    reason = Reason.UPSTREAM_UNREACHABLE

    def __init__(self, message: str, *, is_transient: bool = True) -> None:
        super().__init__(message)
        self.is_transient = is_transient


class TimedOut(UpstreamFault):
    """An upstream that sent nothing for longer than the settings allow."""

    reason = Reason.UPSTREAM_TIMEOUT


class InvalidResponse(UpstreamFault):
    """A response that is not a chat completion.

    `kind`: the cause, for the metrics. `is_transient`: whether a retry can succeed.
    """

    reason = Reason.UPSTREAM_INVALID_RESPONSE
    Kind = Literal["not_a_completion", "bad_json", "oversize", "unexpected_content"]

    def __init__(
        self,
        message: str,
        kind: Kind,
        *,
        is_transient: bool = False,
        detail: chat_error_pb2.UpstreamError | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.is_transient = is_transient
        self.detail = detail


class Truncated(UpstreamFault):
    """A response without `[DONE]` and without a finish_reason for every choice."""

    reason = Reason.UPSTREAM_TRUNCATED

    def __init__(self, message: str, *, detail: chat_error_pb2.UpstreamError | None = None) -> None:
        super().__init__(message)
        self.detail = detail


class ErrorResponse(UpstreamFault):
    """An error response of the upstream.

    `detail` is the upstream's error. `status` is its HTTP status. For an error object inside a 200 (`in_success`) it is
    the status that the error's code stands for. `should_retry` is the upstream's advice.
    """

    detail: chat_error_pb2.UpstreamError

    def __init__(
        self,
        reason: Reason,
        status: int,
        detail: chat_error_pb2.UpstreamError,
        *,
        in_success: bool = False,
        retry_after_seconds: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(detail.message, retry_after_seconds=retry_after_seconds)
        self.reason = reason
        self.status = status
        self.detail = detail
        self.in_success = in_success
        self.should_retry = should_retry
