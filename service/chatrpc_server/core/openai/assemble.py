"""Assembly of a stream's chunks into one response, for servers that stream although no stream was requested.

Texts and the lists of a delta are concatenated. For all other values, the newest replaces the older ones.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message

from chatrpc.v1.chat_message_pb2 import ChatMessage, ToolCall
from chatrpc.v1.chat_response_pb2 import Choice, Delta, ToolCallDelta
from chatrpc_server.core.openai import TEXT_FIELDS, jsontext
from chatrpc_server.core.upstream import ChatChunk, ChatResponse

_HEAD = ("id", "object", "created", "model", "system_fingerprint", "service_tier", "moderation_json")


def assemble(chunks: Iterable[ChatChunk]) -> ChatResponse:
    """Return the response, with choices in the order of appearance and tool calls in the order of their indexes."""
    response = ChatResponse()
    choices: dict[int, Choice] = {}
    calls: dict[tuple[int, int], ToolCall] = {}
    for chunk in chunks:
        _set_newest(response, chunk, _HEAD)
        _merge_extras(response, chunk)
        if chunk.HasField("usage"):
            response.usage.CopyFrom(chunk.usage)
        for part in chunk.choices:
            choice = choices.setdefault(part.index, Choice(index=part.index))
            _set_newest(choice, part, ("finish_reason",))
            _merge_extras(choice, part)
            if part.HasField("logprobs"):
                choice.logprobs.MergeFrom(part.logprobs)
            if part.HasField("delta"):
                _add_delta(choice.message, part.delta)
            for call in part.delta.tool_calls:
                _add_call(calls.setdefault((part.index, call.index), ToolCall()), call)
    for (index, _), tool_call in sorted(calls.items(), key=lambda item: item[0]):
        choices[index].message.tool_calls.append(tool_call)
    response.choices.extend(choices.values())
    return response


def _add_delta(message: ChatMessage, delta: Delta) -> None:
    message.SetInParent()
    _set_newest(message, delta, ("role",))
    _add_parts(message, delta)
    _concatenate(message, delta, TEXT_FIELDS)
    message.annotations.extend(delta.annotations)
    if delta.HasField("function_call"):
        _set_newest(message.function_call, delta.function_call, ("name",))
        _concatenate(message.function_call, delta.function_call, ("arguments",))
        _merge_extras(message.function_call, delta.function_call)
    if delta.HasField("audio"):
        _set_newest(message.audio, delta.audio, ("id", "expires_at"))
        if delta.audio.HasField("data"):
            message.audio.data = _add_base64(message.audio.data, delta.audio.data)
        _concatenate(message.audio, delta.audio, ("transcript",))
        _merge_extras(message.audio, delta.audio)
    _merge_extras(message, delta, grow=True)


def _add_parts(message: ChatMessage, delta: Delta) -> None:
    """Add content to the parts if it comes as text and as arrays (Mistral's reasoning models)."""
    if delta.content_parts:
        if message.content and not message.content_parts:
            message.content_parts.add(type="text", text=message.content)
        message.content_parts.extend(delta.content_parts)
    elif delta.content and message.content_parts:
        if not message.content_parts[-1].HasField("text"):
            message.content_parts.add(type="text")
        message.content_parts[-1].text += delta.content


def _add_base64(known: str, more: str) -> str:
    """Concatenate encoded pieces. Each piece is encoded separately, so padding can occur between them."""
    if known.endswith("="):
        try:
            return b64encode(b64decode(known) + b64decode(more)).decode()
        except ValueError:
            pass
    return known + more


def _add_call(call: ToolCall, delta: ToolCallDelta) -> None:
    _set_newest(call, delta, ("id", "type"))
    _merge_extras(call, delta)
    if delta.HasField("function"):
        _set_newest(call.function, delta.function, ("name",))
        _concatenate(call.function, delta.function, ("arguments",))
        _merge_extras(call.function, delta.function)
    if delta.HasField("custom"):
        _set_newest(call.custom, delta.custom, ("name",))
        _concatenate(call.custom, delta.custom, ("input",))
        _merge_extras(call.custom, delta.custom)


def _set_newest(into: Message, source: Message, names: tuple[str, ...]) -> None:
    for field, value in source.ListFields():
        if field.name in names:
            setattr(into, field.name, value)


def _concatenate(into: Message, source: Message, names: tuple[str, ...]) -> None:
    for field, value in source.ListFields():
        if field.name in names:
            setattr(into, field.name, getattr(into, field.name) + value)


def _merge_extras(into: Any, source: Any, *, grow: bool = False) -> None:
    """Merge `extra_json`. If `grow`, lists arrive in parts (reasoning_details), else complete (citations)."""
    if not source.extra_json:
        return
    extras = jsontext.loads_leniently(into.extra_json.encode()) if into.extra_json else {}
    for key, value in jsontext.loads_leniently(source.extra_json.encode()).items():
        known = extras.get(key)
        extras[key] = [*known, *value] if grow and isinstance(known, list) and isinstance(value, list) else value
    into.extra_json = jsontext.dumps(extras).decode()
