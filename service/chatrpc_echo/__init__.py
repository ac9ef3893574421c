"""echo: the embedded upstream, an OpenAI-compatible HTTP server that needs no key and no model.

It serves the demo and is the tests' double of a provider: it answers by repeating the last user message, and it
misbehaves on request, by model name (`echo:status=429,retry_after=2`). It is deterministic, and it imports none of our
other modules.

How a request passes through: `server` (socket, routes, what was received) → `validation` → `directives` (how to
misbehave) → `answers` (what to say; with `tools`, `instances`, `pieces`) → `wire` (as bytes) → `delivery` (when, and
how it breaks off). `errors` has OpenAI's words.
"""

from chatrpc_echo.directives import DIRECTIVES
from chatrpc_echo.server import Echo, Received

__all__ = ["DIRECTIVES", "Echo", "Received"]
