"""The order of the layers around a call, outermost first, and why.

observe      counts and times everything, so it must see the final status
statuses     turns exceptions into statuses, so everything that may raise is inside
admission    turns away what this process cannot take, before any work is done
"""

from collections.abc import Callable, Sequence

from chatrpc_server.rpc.admission import Admission
from chatrpc_server.rpc.observe import Observe
from chatrpc_server.rpc.pipeline import Layer
from chatrpc_server.rpc.statuses import Statuses


def layers(observe: Observe, admission: Admission, redact: Callable[[str], str]) -> Sequence[Layer]:
    """The layers of one server."""
    return (observe, Statuses(redact), admission)
