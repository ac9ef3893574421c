"""The OpenAI dialect: requests to JSON, JSON and SSE to messages. Pure, like the rest of the core."""
