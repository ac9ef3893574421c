"""Limits for the numbers of things in one response, because a stream remembers each of them until its end.

An upstream can invent choices, tool calls and ids without a bound. The limits are constants: OpenAI's own maximum of
`n` is 128, and no known model makes a thousand tool calls in one turn.
"""

from typing import Any

from chatrpc_server.core.errors import InvalidResponse

MAX_CHOICES = 128
"""Choices of one response."""
MAX_TOOL_CALLS = 1024
"""Tool calls of one response, in all choices; also their distinct ids, because some servers change the id of a call."""
MAX_TOKENS = 500_000
"""Tokens in the lists of one `logprobs`. Messages of more would take long to write and to free."""
MAX_EVENT_LINES = 100_000
"""Lines of one event that are read as events, because the server omits blank lines."""
MAX_REASON_CHARACTERS = 64
"""Characters of a finish reason that are remembered; the caller receives all."""


def check(what: str, count: int, limit: int) -> None:
    """Raise `InvalidResponse` if a response has more than `limit` of something, such as choices."""
    if count > limit:
        raise InvalidResponse(f"the upstream's response has {count} {what}; the limit is {limit}", "oversize")


def check_choices(choices: list[Any]) -> None:
    """Raise `InvalidResponse` if the JSON of a complete response has too many choices or tool calls."""
    check("choices", len(choices), MAX_CHOICES)
    calls = 0
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        tool_calls = message.get("tool_calls") if isinstance(message, dict) else None
        calls += len(tool_calls) if isinstance(tool_calls, list) else 0
    check("tool calls", calls, MAX_TOOL_CALLS)
