"""One RPC on its way through the service: the caller's input, the attempts made for it, and the observations.

The inbound edge creates one `Call` per RPC. All code on the way can read it; each observed field has one writer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from chatrpc.v1.chat_response_pb2 import Usage
from chatrpc_server.core.budget import UNLIMITED, ByteBudget

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class UpstreamIdentity:
    """An upstream as metrics, logs and traces show it: names, never settings or keys."""

    name: str
    """The configured name: the label `upstream` of metrics."""
    provider: str
    """OpenTelemetry's `gen_ai.provider.name`."""
    url: str = ""
    """The URL to which requests are posted."""


@dataclass(slots=True)
class Attempt:
    """One HTTP request to an upstream. Written by the outbound edge."""

    upstream: UpstreamIdentity
    started: float
    """Time of its start, in seconds of `time.monotonic`."""
    status: int | None = None
    """HTTP status; None if there was no response."""
    headers_seconds: float = 0.0
    """Time from the start to the response headers, or to the failure without them."""
    unreachable: bool = False
    """Whether there was no connection, or it closed before the response."""
    request_id: str = ""
    """The upstream's own id of the request."""
    response_metadata: Headers = ()
    """gRPC metadata for the caller, taken from the response headers."""


@dataclass(slots=True)
class Call:
    """One RPC."""

    id: str
    """The request id: the caller's `x-request-id`, or a generated one."""
    method: str
    """The RPC's short name, such as `CreateChatCompletion`."""
    started: float
    """Time of arrival, in seconds of `time.monotonic`."""
    deadline: float
    """Time by which all work for this call must stop, in seconds of the event loop's clock."""
    timeout_seconds: float | None = None
    """The caller's timeout; None if the caller set no deadline."""
    forward: Headers = ()
    """HTTP headers that go to the upstream with every attempt."""
    callers_key: str = field(default="", repr=False)
    """The caller's own key for the upstream, a secret; empty if the service's key counts."""
    coalesce: bool = True
    """Whether chunks that arrive together can become one message."""
    trace_id: str = ""
    """The trace of the call, 32 hexadecimal digits, or empty."""
    sampled: bool = False
    """Whether that trace is kept."""
    span: object = None
    """OpenTelemetry's span of the call if tracing is on; only telemetry/tracing.py knows its type."""
    request_bytes: int = 0
    """Size of the request message, in bytes."""
    model: str = ""
    """The model that the caller requested. Metrics use `model_label` instead, so that callers cannot create series."""
    budget: ByteBudget = UNLIMITED
    """The budget that pays for the call's messages."""
    held_bytes: int = 0
    """The bytes that this call has taken from the budget."""

    # Observed on the way; written by the outbound edge.
    upstream: UpstreamIdentity = UpstreamIdentity("", "")
    """The upstream of the last attempt; before the first attempt the service's default."""
    attempts: list[Attempt] = field(default_factory=list)
    """All attempts, oldest first."""
    waiting_seconds: float = 0.0
    """Time spent waiting for upstreams, and between attempts."""
    chunks: int = 0
    """Chunks of a stream that the upstream sent."""
    usage: Usage | None = None
    """The newest usage that the upstream reported: the cost of the call, however it ends."""
    finish_reasons: dict[int, str] = field(default_factory=dict)
    """The finish reason of each choice, by the choice's index."""

    # Observed on the way; written by the inbound edge.
    messages_received: int = 0
    receiving_seconds: float = 0.0
    """Time spent waiting for the request."""
    first_message_at: float | None = None
    """Time of the first message for the caller, in seconds of `time.monotonic`."""
    messages_sent: int = 0
    bytes_sent: int = 0
    """Size of the messages of a stream, in bytes."""
    writing_seconds: float = 0.0
    """Time spent writing to the caller."""
    code: str = ""
    """The final status, spelled as in `labels.GRPC_CODES`; empty until the status is known."""
    reason: str = ""
    """`ErrorInfo.reason` of the final status, if it is an error."""
    mapped_reason: str = ""
    """The reason of an error in a response with a status of success, if its codes or words have one."""

    def hold(self, size_bytes: int) -> None:
        """Count bytes of a message until they are released or the call ends. Raises `Overloaded`."""
        self.budget.take(size_bytes)
        self.held_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Stop counting bytes."""
        self.budget.give(size_bytes)
        self.held_bytes -= size_bytes

    def begin_attempt(self, upstream: UpstreamIdentity, now: float) -> Attempt:
        """Add an attempt at this upstream; `now` in seconds of `time.monotonic`."""
        attempt = Attempt(upstream, now)
        self.upstream = upstream
        self.attempts.append(attempt)
        return attempt

    @property
    def last_attempt(self) -> Attempt | None:
        """The newest attempt, whose response the caller gets."""
        return self.attempts[-1] if self.attempts else None

    @property
    def response_metadata(self) -> Headers:
        """gRPC metadata for the caller, from the headers of the newest response."""
        return self.attempts[-1].response_metadata if self.attempts else ()

    def overhead_seconds(self, seconds: float) -> float:
        """Return the part of the call's `seconds` spent neither on an upstream nor on the caller's side."""
        return max(0.0, seconds - self.waiting_seconds - self.receiving_seconds - self.writing_seconds)
