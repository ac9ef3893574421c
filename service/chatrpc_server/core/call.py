"""What a request carries along on its way through the service, and what was seen of it.

One `Call` per RPC. The inbound edge makes it, every station may read it, and each of the observed fields has one
writer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from chatrpc.v1.chat_response_pb2 import Usage

Headers = Sequence[tuple[str, str]]


@dataclass(slots=True)
class Call:
    """One RPC."""

    id: str
    """The request id: the caller's `x-request-id`, or one made here."""
    method: str
    """The RPC's short name, such as `CreateChatCompletion`."""
    started: float
    """When it arrived, in seconds of `time.monotonic`."""
    deadline: float
    """When all work for this call must have ended, in seconds of the event loop's clock."""
    timeout_seconds: float | None = None
    """The time that the caller gave; None if it gave no deadline."""
    forward: Headers = ()
    """HTTP headers that go to the upstream with every attempt."""
    coalesce: bool = True
    """May chunks that arrived together become one message?"""
    trace_id: str = ""
    """The trace that the call belongs to, 32 hexadecimal digits, if there is one."""
    sampled: bool = False
    """Is that trace kept?"""
    span: object = None
    """OpenTelemetry's span of the call, where traces are on: only tracing/ knows what it is."""

    # Observed on the way; written by the outbound edge.
    attempts: int = 0
    """HTTP requests that were begun."""
    upstream_status: int | None = None
    """HTTP status of the last attempt; None while there is no response."""
    upstream_seconds: float = 0.0
    """Time from the start of the last attempt to its response headers."""
    waiting_seconds: float = 0.0
    """Time spent waiting for the upstream, and for the next attempt at it."""
    chunks: int = 0
    """Chunks of a stream that the upstream sent."""
    upstream_request_id: str = ""
    response_metadata: Headers = ()
    """gRPC metadata for the caller, taken from the upstream's response headers."""
    usage: Usage | None = None
    """The newest usage the upstream reported: whatever ends the call, this is what it cost."""
    finish_reasons: dict[int, str] = field(default_factory=dict)
    """By choice."""

    # Observed on the way; written by the inbound edge.
    model: str = ""
    """The model that the caller asked for, verbatim: never a metric label as it is."""
    first_message_at: float | None = None
    """When there was something to send to the caller, as `started`."""
    messages_sent: int = 0
    bytes_sent: int = 0
    """Size of the messages of a stream, in bytes."""
    writing_seconds: float = 0.0
    """Time spent writing to the caller."""
    code: str = ""
    """The status that ended the call, as `metrics.GRPC_CODES` spells it; empty until then."""
    reason: str = ""
    """`ErrorInfo.reason` of the status that ended the call, if it was an error."""
