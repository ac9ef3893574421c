"""The closed sets of label values. A value outside its set counts as `other`, so that no caller can create series."""

OTHER = "other"
OPERATION = "chat"
"""`gen_ai.operation.name`"""
UNKNOWN_RPC = ("unary", "unknown", "unknown")
"""Stands for all RPCs that the service does not implement, because callers choose their names."""

# fmt: off
GRPC_CODES = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
    "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable",
    "DataLoss", "Unauthenticated",
)
"""In the order of their numbers, spelled as go-grpc-middleware does, on which dashboards are built."""
STREAM_OUTCOMES = (
    "complete", "client_cancel", "deadline", "upstream_error", "upstream_truncated", "idle_timeout", "drain",
    "rejected", "service_error", "worker_exited",
)
TOKEN_TYPES = ("input", "output", "cached_input", "reasoning")
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call", OTHER)
HTTP_STATUSES = (
    "200", "400", "401", "403", "404", "408", "409", "413", "422", "429", "500", "502", "503", "504", "529", OTHER,
)
NO_CODE = ""
"""The HTTP status of a request without a response."""
ATTEMPT_OUTCOMES = ("response", "no_response", "cancelled")
"""Of an HTTP request: `cancelled` if the call ended before a response, `no_response` if the upstream gave none."""
PROTOCOL_ERRORS = ("bad_json", "not_a_completion", "oversize", "unexpected_content", "missing_done")
REJECTIONS = ("in_flight", "bytes", "receiving", "deadline", "malformed", "descriptors")
# fmt: on
