"""Merging of chunks that arrived together into as few messages as possible.

It never waits: it sees the chunks of one read. Two neighbours merge if they differ only in text that concatenates: same
stream, choice and kind of text, without finish_reason, usage and extras. The first can also hold the role, or begin a
tool call (protos/chatrpc/v1/chat_service.proto).
"""

from collections.abc import Sequence

from google.protobuf.message import Message

from chatrpc.v1.chat_response_pb2 import Delta, ToolCallDelta
from chatrpc_server.core.openai import TEXT_FIELDS
from chatrpc_server.core.upstream import ChatChunk

_SAME = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
_CHUNK_FIELDS = {*_SAME, "choices", "obfuscation"}
_CHOICE_FIELDS = {"index", "delta", "logprobs"}
_TEXTS = frozenset(TEXT_FIELDS)


def coalesce(chunks: Sequence[ChatChunk]) -> Sequence[ChatChunk]:
    """Return the same stream in as few messages as possible. Do not use `chunks` again: the merge changes them."""
    if len(chunks) < 2:
        return chunks
    runs = [[chunks[0]]]
    for chunk in chunks[1:]:
        if _continues(runs[-1][0], chunk):
            runs[-1].append(chunk)
        else:
            runs.append([chunk])
    return [_merged(run) for run in runs]


def _continues(first: ChatChunk, second: ChatChunk) -> bool:
    if len(first.choices) != 1 or len(second.choices) != 1:
        return False
    one, two = first.choices[0], second.choices[0]
    return (
        one.index == two.index
        and _continues_delta(one.delta, two.delta)  # first, because most neighbours that differ do so here
        and _same_fields(one, two, _CHOICE_FIELDS)
        and _same_fields(first, second, _CHUNK_FIELDS)
        and not one.logprobs.extra_json
        and not two.logprobs.extra_json
        and all(getattr(first, name) == getattr(second, name) for name in _SAME)
    )


def _continues_delta(one: Delta, two: Delta) -> bool:
    names = _field_names(two)
    if names != _field_names(one) - {"role"}:
        return False
    if names == {"tool_calls"} and len(one.tool_calls) == len(two.tool_calls) == 1:
        return _continues_call(one.tool_calls[0], two.tool_calls[0])
    return names <= _TEXTS


def _continues_call(one: ToolCallDelta, two: ToolCallDelta) -> bool:
    """Return whether the second holds only more arguments. The first can begin the call."""
    return (
        one.index == two.index
        and _field_names(two) <= {"index", "function"}
        and _field_names(two.function) == {"arguments"}
        and _field_names(one) <= {"index", "id", "type", "function"}
        and _field_names(one.function) <= {"name", "arguments"}
    )


def _merged(run: Sequence[ChatChunk]) -> ChatChunk:
    """Merge all into the first. Set each text once: a message keeps the memory of all its texts (upb's arena)."""
    first = run[0]
    if len(run) == 1:
        return first
    choices = [chunk.choices[0] for chunk in run]
    delta = choices[0].delta
    for name in _TEXTS:
        if delta.HasField(name):  # type: ignore[arg-type]
            setattr(delta, name, "".join([getattr(choice.delta, name) for choice in choices]))
    if delta.tool_calls:
        arguments = [choice.delta.tool_calls[0].function.arguments for choice in choices]
        delta.tool_calls[0].function.arguments = "".join(arguments)
    for choice in choices[1:]:
        if choice.HasField("logprobs"):
            choices[0].logprobs.content.extend(choice.logprobs.content)
            choices[0].logprobs.refusal.extend(choice.logprobs.refusal)
    if first.HasField("obfuscation"):
        first.obfuscation = "".join([chunk.obfuscation for chunk in run])
    return first


def _same_fields(one: Message, two: Message, allowed: set[str]) -> bool:
    names = _field_names(one)
    return names <= allowed and names == _field_names(two)


def _field_names(message: Message) -> set[str]:
    return {field.name for field, _ in message.ListFields()}
