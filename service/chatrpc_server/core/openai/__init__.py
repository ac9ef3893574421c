"""The OpenAI dialect: messages to JSON requests, JSON and SSE responses to messages. Pure, like all of the core."""
