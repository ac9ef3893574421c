"""What a failed call raises: the gRPC status with all that chatrpc says in its details.

The details are those of `google.rpc.Status` (google/rpc/error_details.proto); reasons are the table in
chatrpc/v1/chat_error.proto.
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
    """A call that failed. The subclass follows from `code`, the case within it from `reason`."""

    def __init__(self, code: grpc.StatusCode, message: str, details: Status, request_id: str) -> None:
        self.code = code
        """The gRPC status code."""
        self.message = message
        """What went wrong, in words."""
        self.reason = ""
        """Such as `UPSTREAM_RATE_LIMITED`. Empty if the status is of gRPC itself, which gives no details."""
        self.mapped_reason = ""
        """For `UPSTREAM_ERROR_BODY` what the upstream's error amounts to, if it is known."""
        self.retry_after: float | None = None
        """So many seconds later another try may succeed. None: nobody said."""
        self.fields: list[tuple[str, str]] = []
        """What is wrong with the request: the field's path, and what would be right."""
        self.request_id = request_id
        """The call's name in the logs of the service. Empty if nothing of the service had arrived."""
        self.upstream_request_id = ""
        """The call's name in the logs of the upstream. Empty: it gave none."""
        self.upstream: UpstreamError | None = None
        """What the upstream said. None: it did not answer."""
        self._made_of = (code, message, details, request_id)
        with suppress(DecodeError):  # of somebody else's details
            self._read(details)
        super().__init__(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it passes from process to process."""
        return type(self), self._made_of

    @property
    def upstream_status(self) -> int | None:
        """The HTTP status of the upstream; None if it did not answer."""
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
    """INVALID_ARGUMENT: the request is at fault, `fields` may say where."""


class NotFoundError(ChatError):
    """NOT_FOUND: no such model, or no such address at the upstream."""


class PermissionDeniedError(ChatError):
    """PERMISSION_DENIED or UNAUTHENTICATED."""


class PreconditionError(ChatError):
    """FAILED_PRECONDITION or ABORTED: the account or the state of something stands against it."""


class RateLimitError(ChatError):
    """RESOURCE_EXHAUSTED: too many calls, too many tokens, no quota left, or a message that is too large."""


class DeadlineError(ChatError):
    """DEADLINE_EXCEEDED: the call's timeout has passed, or the upstream was silent for too long."""


class CancelledError(ChatError):
    """CANCELLED."""


class UnavailableError(ChatError):
    """UNAVAILABLE: not reached, draining, overloaded, or a stream that broke off. Another try may succeed."""


class UnimplementedError(ChatError):
    """UNIMPLEMENTED: the service or its upstream does not know this."""


class InternalError(ChatError):
    """INTERNAL and all that is left: nothing that the caller could mend."""


_KINDS: dict[grpc.StatusCode, type[ChatError]] = {
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
    """The typed error for a `grpc.RpcError`, of either of grpc's two stacks."""
    code = error.code() or grpc.StatusCode.UNKNOWN
    metadata: dict[str, Any] = {**dict(error.initial_metadata() or ()), **dict(error.trailing_metadata() or ())}
    details = Status()
    try:
        details.ParseFromString(metadata.get(_DETAILS_KEY, b""))
    except DecodeError:
        details = Status()  # somebody else's
    message = error.details() or "no message"
    return _KINDS.get(code, InternalError)(code, message, details, str(metadata.get(_REQUEST_ID_KEY, "")))
