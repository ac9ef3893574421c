"""The received part of a stream, assembled into the response that the unary call would return.

The rules are those of chatrpc/v1/chat_service.proto: text concatenates, the lists of a delta grow, of every other field
the newest value counts. `index` identifies choices and tool calls.
"""

import json
from base64 import b64decode, b64encode
from typing import Any

from google.protobuf.message import Message

from chatrpc.v1.chat_message_pb2 import ChatMessage, ToolCall
from chatrpc.v1.chat_response_pb2 import (
    Choice,
    CreateChatCompletionResponse,
    CreateChatCompletionStreamResponse,
    Delta,
    ToolCallDelta,
    Usage,
)

_HEAD = ("id", "created", "model", "system_fingerprint", "service_tier", "moderation_json")
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


def text_deltas(chunk: CreateChatCompletionStreamResponse) -> list[str]:
    """Return the pieces of the first choice's text."""
    return [part.delta.content for part in chunk.choices if not part.index and part.delta.content]


class Snapshot:
    """The messages of one stream so far. Each property is computed when it is read."""

    def __init__(self) -> None:
        self.chunks: list[CreateChatCompletionStreamResponse] = []
        """The messages in the order of arrival."""

    @property
    def text(self) -> str:
        """The first choice's text."""
        return "".join(piece for chunk in self.chunks for piece in text_deltas(chunk))

    @property
    def usage(self) -> Usage | None:
        """The token usage. None until the upstream has reported it."""
        return next((chunk.usage for chunk in reversed(self.chunks) if chunk.HasField("usage")), None)

    @property
    def finish_reasons(self) -> dict[int, str]:
        """The finish reason of each finished choice, by its index."""
        parts = (part for chunk in self.chunks for part in chunk.choices)
        return {part.index: part.finish_reason for part in parts if part.HasField("finish_reason")}

    @property
    def message(self) -> ChatMessage:
        """The first choice's message, tool calls included, for the next turn of the chat."""
        message = next((choice.message for choice in self.response.choices if not choice.index), ChatMessage())
        message.role = message.role or "assistant"
        return message

    @property
    def response(self) -> CreateChatCompletionResponse:
        """The response as far as it has arrived."""
        response = CreateChatCompletionResponse(object="chat.completion")
        choices: dict[int, Choice] = {}
        calls: dict[tuple[int, int], ToolCall] = {}
        for chunk in self.chunks:
            _copy_newest(response, chunk, _HEAD)
            _merge_extras(response, chunk)
            if chunk.HasField("usage"):
                response.usage.CopyFrom(chunk.usage)
            for part in chunk.choices:
                choice = choices.setdefault(part.index, Choice(index=part.index))
                _copy_newest(choice, part, ("finish_reason",))
                _merge_extras(choice, part)
                if part.HasField("logprobs"):
                    choice.logprobs.MergeFrom(part.logprobs)
                if part.HasField("delta"):
                    _add_delta(choice.message, part.delta)
                for call in part.delta.tool_calls:
                    _add_call(calls.setdefault((part.index, call.index), ToolCall()), call)
        for place in sorted(calls):
            choices[place[0]].message.tool_calls.append(calls[place])
        response.choices.extend(choices[index] for index in sorted(choices))
        return response


def _add_delta(message: ChatMessage, delta: Delta) -> None:
    message.SetInParent()
    _copy_newest(message, delta, ("role",))
    _add_parts(message, delta)
    _concatenate(message, delta, _TEXTS)
    message.annotations.extend(delta.annotations)
    if delta.HasField("function_call"):
        _add_named(message.function_call, delta.function_call, "arguments")
    if delta.HasField("audio"):
        _copy_newest(message.audio, delta.audio, ("id", "expires_at"))
        if delta.audio.HasField("data"):
            message.audio.data = _add_base64(message.audio.data, delta.audio.data)
        _concatenate(message.audio, delta.audio, ("transcript",))
        _merge_extras(message.audio, delta.audio)
    _merge_extras(message, delta, grow=True)


def _add_parts(message: ChatMessage, delta: Delta) -> None:
    """Add content parts. Once content has arrived as an array, the parts hold all content, earlier text included."""
    if delta.content_parts:
        if message.content and not message.content_parts:
            message.content_parts.add(type="text", text=message.content)
        message.content_parts.extend(delta.content_parts)
    elif delta.content and message.content_parts:
        if not message.content_parts[-1].HasField("text"):
            message.content_parts.add(type="text")
        message.content_parts[-1].text += delta.content


def _add_base64(known: str, more: str) -> str:
    """Join base64 texts. Each piece is encoded on its own, so padding may occur between them."""
    if known.endswith("="):
        try:
            return b64encode(b64decode(known) + b64decode(more)).decode()
        except ValueError:
            pass
    return known + more


def _add_call(call: ToolCall, delta: ToolCallDelta) -> None:
    _copy_newest(call, delta, ("id", "type"))
    _merge_extras(call, delta)
    if delta.HasField("function"):
        _add_named(call.function, delta.function, "arguments")
    if delta.HasField("custom"):
        _add_named(call.custom, delta.custom, "input")


def _add_named(into: Any, delta: Any, text: str) -> None:
    _copy_newest(into, delta, ("name",))
    _concatenate(into, delta, (text,))
    _merge_extras(into, delta)


def _copy_newest(into: Message, source: Message, names: tuple[str, ...]) -> None:
    for field, value in source.ListFields():
        if field.name in names:
            setattr(into, field.name, value)


def _concatenate(into: Message, source: Message, names: tuple[str, ...]) -> None:
    for field, value in source.ListFields():
        if field.name in names:
            setattr(into, field.name, getattr(into, field.name) + value)


def _merge_extras(into: Any, source: Any, *, grow: bool = False) -> None:
    """Merge `extra_json`. With `grow` lists are concatenated.

    A delta's lists, such as reasoning_details, come in parts; other lists, such as citations, are whole in every chunk.
    """
    if not source.extra_json:
        return
    if not into.extra_json:
        into.extra_json = source.extra_json
        return
    extras = json.loads(into.extra_json)
    for key, value in json.loads(source.extra_json).items():
        known = extras.get(key)
        extras[key] = [*known, *value] if grow and isinstance(known, list) and isinstance(value, list) else value
    into.extra_json = json.dumps(extras)
