"""The chunks of a stream put together to the response that they amount to, for servers that stream unasked.

Text concatenates, a delta's lists grow, of everything else the newest counts.
"""

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message

from chatrpc.v1.chat_message_pb2 import ChatMessage, ToolCall
from chatrpc.v1.chat_response_pb2 import Choice, Delta, ToolCallDelta
from chatrpc_server.core import jsontext
from chatrpc_server.core.upstream import ChatChunk, ChatResponse

_HEAD = ("id", "object", "created", "model", "system_fingerprint", "service_tier", "moderation_json")
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


def assemble(chunks: Iterable[ChatChunk]) -> ChatResponse:
    """The response. Choices stand in the order in which they appeared, tool calls in that of their indexes."""
    response = ChatResponse()
    choices: dict[int, Choice] = {}
    calls: dict[tuple[int, int], ToolCall] = {}
    for chunk in chunks:
        _take_newest(response, chunk, _HEAD)
        _merge_extras(response, chunk)
        if chunk.HasField("usage"):
            response.usage.CopyFrom(chunk.usage)
        for part in chunk.choices:
            choice = choices.setdefault(part.index, Choice(index=part.index))
            _take_newest(choice, part, ("finish_reason",))
            _merge_extras(choice, part)
            if part.HasField("logprobs"):
                choice.logprobs.MergeFrom(part.logprobs)
            if part.HasField("delta"):
                _add_delta(choice.message, part.delta)
            for call in part.delta.tool_calls:
                _add_call(calls.setdefault((part.index, call.index), ToolCall()), call)
    for (index, _), whole in sorted(calls.items(), key=lambda item: item[0]):
        choices[index].message.tool_calls.append(whole)
    response.choices.extend(choices.values())
    return response


def _add_delta(message: ChatMessage, delta: Delta) -> None:
    message.SetInParent()
    _take_newest(message, delta, ("role",))
    _concatenate(message, delta, _TEXTS)
    message.content_parts.extend(delta.content_parts)
    message.annotations.extend(delta.annotations)
    if delta.HasField("function_call"):
        _concatenate(message.function_call, delta.function_call, ("name", "arguments"))
        _merge_extras(message.function_call, delta.function_call)
    if delta.HasField("audio"):
        _take_newest(message.audio, delta.audio, ("id", "expires_at"))
        _concatenate(message.audio, delta.audio, ("data", "transcript"))
        _merge_extras(message.audio, delta.audio)
    _merge_extras(message, delta, grow=True)


def _add_call(call: ToolCall, delta: ToolCallDelta) -> None:
    _take_newest(call, delta, ("id", "type"))
    _merge_extras(call, delta)
    if delta.HasField("function"):
        _concatenate(call.function, delta.function, ("name", "arguments"))
        _merge_extras(call.function, delta.function)
    if delta.HasField("custom"):
        _concatenate(call.custom, delta.custom, ("name", "input"))
        _merge_extras(call.custom, delta.custom)


def _take_newest(into: Message, source: Message, names: tuple[str, ...]) -> None:
    for field, value in source.ListFields():
        if field.name in names:
            setattr(into, field.name, value)


def _concatenate(into: Message, source: Message, names: tuple[str, ...]) -> None:
    for field, value in source.ListFields():
        if field.name in names:
            setattr(into, field.name, getattr(into, field.name) + value)


def _merge_extras(into: Any, source: Any, *, grow: bool = False) -> None:
    """`grow`: lists such as reasoning_details come in parts; others, such as citations, whole in every chunk."""
    if not source.extra_json:
        return
    extras = jsontext.loads_leniently(into.extra_json.encode()) if into.extra_json else {}
    for key, value in jsontext.loads_leniently(source.extra_json.encode()).items():
        known = extras.get(key)
        extras[key] = [*known, *value] if grow and isinstance(known, list) and isinstance(value, list) else value
    into.extra_json = jsontext.dumps(extras).decode()
