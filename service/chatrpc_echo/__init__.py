"""The embedded upstream: an OpenAI-compatible HTTP server that requires neither a key nor a model.

It serves the demo and stands in for a provider in tests. It repeats the last user message, and simulates faults that
the model name selects (`echo:status=429,retry_after=2`). Its responses are deterministic. It imports no other package
of the project.

A request passes through `server` (socket, routes, record of requests) → `validation` → `directives` (fault) →
`completions` (content; uses `tools`, `schema_instances`, `tokens`) → `encoding` (bytes) → `responses` (timing and
interruptions). `errors` holds OpenAI's error texts.
"""

from typing import TYPE_CHECKING, Any

from chatrpc_echo.directives import DIRECTIVES

if TYPE_CHECKING:
    from chatrpc_echo.server import Echo, Received

__all__ = ["DIRECTIVES", "Echo", "Received"]


def __getattr__(name: str) -> Any:
    """Import the server on first use, because the help text needs the directives even if aiohttp is not installed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from chatrpc_echo import server

    return getattr(server, name)
