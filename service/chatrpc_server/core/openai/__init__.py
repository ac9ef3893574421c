"""The OpenAI dialect: messages to JSON requests, JSON and SSE responses to messages. Pure, like all of the core."""

TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "refusal")
"""Fields of a delta whose texts are concatenated, with the same names in JSON and in the message."""
