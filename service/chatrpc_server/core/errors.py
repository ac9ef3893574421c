"""Everything that can go wrong with a call, by whose fault it is.

    ChatError
    ├── CallerError            the caller's
    │   ├── InvalidRequest       the request cannot be put to an upstream as it is
    │   └── DeadlineExceeded     the time the caller gave is over
    ├── ServiceError           ours
    │   ├── Overloaded           too many calls are in flight
    │   ├── ResponseTooLarge     the answer is larger than a message may be
    │   └── Draining             this process is about to stop
    └── UpstreamFault          the upstream's
        ├── Unreachable          no connection, or it broke before the response began
        ├── TimedOut             silence for longer than the settings allow
        ├── ErrorResponse        an HTTP error status, or an error object where a completion should be
        ├── InvalidResponse      not what the chat completions API sends
        └── Truncated            the response ended before the completion did

`reason` is the `google.rpc.ErrorInfo.reason` that the caller sees; `rpc/layers/errors.py` maps reasons to gRPC codes.
Messages may be shown to the caller, so they never hold a key; they are never logged, since an upstream may quote a
prompt in them.
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
    """A call cannot be answered. `retry_after_seconds`: when trying again makes sense, if that is known."""

    reason: Reason = Reason.INTERNAL

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class CallerError(ChatError):
    """The caller has to change something."""


class InvalidRequest(CallerError):
    """The request is malformed at `field`, a path such as `messages[0].role`."""

    reason = Reason.INVALID_REQUEST

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description

    def inside(self, parent: str) -> "InvalidRequest":
        """The same mistake as seen from the message that holds the field."""
        return InvalidRequest(f"{parent}.{self.field}", self.description)


class DeadlineExceeded(CallerError):
    """The call's deadline has passed, or is too near to begin."""

    reason = Reason.DEADLINE_EXCEEDED


class ServiceError(ChatError):
    """This process cannot take or finish the call."""


class Overloaded(ServiceError):
    """The limit of calls in flight is reached."""

    reason = Reason.IN_FLIGHT_LIMIT


class ResponseTooLarge(ServiceError):
    """The answer does not fit into a message of the allowed size."""

    reason = Reason.RESPONSE_TOO_LARGE


class Draining(ServiceError):
    """The process stops and the call was still running."""

    reason = Reason.SERVER_DRAINING


class UpstreamFault(ChatError):
    """The upstream did not deliver."""

    reason = Reason.UPSTREAM_ERROR


class Unreachable(UpstreamFault):
    """Connecting failed (refused, DNS, TLS), or the connection broke before the response began."""

    reason = Reason.UPSTREAM_UNREACHABLE


class TimedOut(UpstreamFault):
    """The upstream stayed silent for longer than the settings allow."""

    reason = Reason.UPSTREAM_TIMEOUT


class InvalidResponse(UpstreamFault):
    """The upstream sent something that is no chat completion. `kind` is why not, for the metrics."""

    reason = Reason.UPSTREAM_INVALID_RESPONSE

    def __init__(
        self, message: str, kind: Literal["not_a_completion", "bad_json", "oversize", "unexpected_content"]
    ) -> None:
        super().__init__(message)
        self.kind = kind


class Truncated(UpstreamFault):
    """The response ended without `[DONE]` and without a finish_reason for every choice."""

    reason = Reason.UPSTREAM_TRUNCATED


class ErrorResponse(UpstreamFault):
    """The upstream answered with an error.

    `detail` is what it said. `status` is the HTTP status that the error amounts to: the response's own or, for an error
    object inside a 200 (`in_success`), the one its code stands for. `should_retry` is the upstream's word on that.
    """

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
