"""The port for observers of requests to upstreams."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from chatrpc_server.core.call import Attempt, Call, Headers


class UpstreamObserver(Protocol):
    """An observer, such as metrics or tracing. It can wrap another one, and must not raise an error of its own."""

    def request(self, call: Call, attempt: Attempt) -> AbstractContextManager[Headers]:
        """Enter around an HTTP request until its response is closed; the value is the request's extra headers."""
        ...

    def gaps(self, call: Call, attempt: Attempt) -> AbstractContextManager[Callable[[float], None]]:
        """Enter around a stream; the value records the wait for each delivery after the first, in seconds."""
        ...
