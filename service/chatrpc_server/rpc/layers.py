"""The order of the layers around a call, outermost first, and why.

observe      counts and times everything, so it must see the final status
statuses     turns exceptions into statuses, so everything that may raise is inside
admission    turns away what this process cannot take, before any work is done
"""

from collections.abc import Callable, Sequence

from chatrpc_server.metrics import Metrics
from chatrpc_server.rpc.admission import Admission
from chatrpc_server.rpc.observe import Observe
from chatrpc_server.rpc.pipeline import Layer
from chatrpc_server.rpc.statuses import Statuses
from chatrpc_server.settings import UpstreamSettings


def layers(
    admission: Admission, metrics: Metrics, upstream: UpstreamSettings, redact: Callable[[str], str]
) -> Sequence[Layer]:
    """The layers of one server."""
    return (Observe(metrics, upstream), Statuses(redact), admission)
