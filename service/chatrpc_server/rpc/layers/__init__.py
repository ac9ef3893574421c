"""The order of the layers around a call, outermost first, and the reason for it.

tracing      starts the trace first, so that metrics and log lines carry its id; closes it last, with the final status
access_log   writes the call's line after metrics has set its status
metrics      counts and times every call, so it must see the final status
errors       maps exceptions to statuses, so all code that can raise is inside
admission    rejects calls above the limits before any work is done
"""

from collections.abc import Callable, Sequence

from chatrpc_server.rpc.layers.access_log import AccessLog
from chatrpc_server.rpc.layers.admission import Admission
from chatrpc_server.rpc.layers.errors import ErrorStatus
from chatrpc_server.rpc.layers.metrics import CallMetrics
from chatrpc_server.rpc.pipeline import Layer


def layers(
    call_metrics: CallMetrics, admission: Admission, redact: Callable[[str], str], tracing: Layer | None = None
) -> Sequence[Layer]:
    """Return the layers of one server."""
    always = (AccessLog(), call_metrics, ErrorStatus(redact), admission)
    return (tracing, *always) if tracing else always
