"""The order of the layers around a call, outermost first, and why.

tracing      begins the call's trace, so that all that observe writes carries its id; ends it with what observe found
observe      counts and times everything, so it must see the final status
statuses     turns exceptions into statuses, so everything that may raise is inside
admission    turns away what this process cannot take, before any work is done
"""

from collections.abc import Callable, Sequence

from chatrpc_server.rpc.layers.admission import Admission
from chatrpc_server.rpc.layers.errors import ErrorStatus
from chatrpc_server.rpc.layers.metrics import CallMetrics
from chatrpc_server.rpc.pipeline import Layer


def layers(
    observe: CallMetrics, admission: Admission, redact: Callable[[str], str], tracing: Layer | None = None
) -> Sequence[Layer]:
    """The layers of one server."""
    always = (observe, ErrorStatus(redact), admission)
    return (tracing, *always) if tracing else always
