"""The port for whoever is told of what goes to the upstream and comes from it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from chatrpc_server.core.call import Call, Headers


class UpstreamObserver(Protocol):
    """Metrics, tracing: each is around the next, and none raises anything of its own."""

    def request(self, call: Call) -> AbstractContextManager[Headers]:
        """Entered around each HTTP request, until its response is closed; gives the headers that it takes along."""
        ...

    def gaps(self, call: Call) -> AbstractContextManager[Callable[[float], None]]:
        """Entered around a stream; gives what is told the wait for each delivery after the first, in seconds."""
        ...
