"""Conversion of OpenAI's keyword arguments to the request message: JSON to protobuf.

The rules are those of chatrpc/v1/chat_service.proto in reverse. A value that fits its field goes into the field. Every
other value goes into `extra_json` of its message and reaches the upstream unchanged: null, an unknown key, text instead
of a number. The upstream decides whether such a value is valid.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest

_Put = Callable[[Any, Any], bool]
"""Function that puts a JSON value into a message and returns False if the value does not fit."""
_BITS = {FieldDescriptor.TYPE_INT32: 31, FieldDescriptor.TYPE_INT64: 63}
_LARGEST_EXACT = 2**53
"""Integers beyond it are not all doubles."""


class _NotJsonError(Exception):
    """A value that JSON cannot represent, with its path."""

    def __init__(self, path: str, why: str) -> None:
        self.path, self.why = path, why


def build_request(
    model: str, messages: Iterable[ChatMessage | Mapping[str, Any]], parameters: Mapping[str, Any]
) -> CreateChatCompletionRequest:
    """Return the request for these parameters. Raises TypeError if an argument is invalid.

    The parameters are those of `POST /v1/chat/completions`; None means unset. `extra_body` is an object with further
    keys of the request, as in OpenAI's SDK.
    """
    if not _is_text(model):
        raise TypeError(f"model: {type(model).__name__} is invalid; use the model's name")
    if isinstance(messages, str | Mapping | ChatMessage):
        raise TypeError("messages: one value is invalid; use a list such as [{'role': 'user', 'content': 'Hello!'}]")
    given = {key: value for key, value in parameters.items() if value is not None and key != "extra_body"}
    extra = parameters.get("extra_body") or {}
    if not isinstance(extra, Mapping):
        raise TypeError(f"extra_body: {type(extra).__name__} is invalid; use a dict")
    if "extra_query" in given:
        raise TypeError("extra_query: gRPC has no URL; remove it")
    if twice := sorted({"model", "messages", *given} & extra.keys()):
        raise TypeError(f"extra_body: {', '.join(twice)} is a parameter too; pass it once")
    chat = list(messages)
    for position, message in enumerate(chat):
        if not isinstance(message, ChatMessage | Mapping):
            raise TypeError(f"messages[{position}]: {type(message).__name__} is invalid; use a dict or a ChatMessage")
    # Protobuf cannot distinguish an empty list from an unset one; the service rejects a request without messages.
    return from_json({"model": model, **({"messages": chat} if chat else {}), **given, **extra})


def from_json(body: Mapping[str, Any]) -> CreateChatCompletionRequest:
    """Return the request for a JSON body of OpenAI's API. Raises TypeError if a value is no JSON."""
    out = CreateChatCompletionRequest()
    try:
        _read(out, body)
    except _NotJsonError as error:
        raise TypeError(f"{error.path}: {error.why}; use values that JSON can represent") from None
    return out


def _read(message: Any, source: Mapping[str, Any]) -> Any:
    """Fill an empty message from JSON and return it."""
    extras = {}
    # Of the members of a oneof, the one that `type` names goes into the field and the others become extras.
    for key in sorted(source, key=lambda key: key != source.get("type")):
        try:
            if not _put(message, key, source[key]):
                _dumps(source[key])
                extras[key] = source[key]
        except UnicodeEncodeError:
            extras[key] = source[key]
        except _NotJsonError as error:
            error.path = f"{key}{'.' if error.path and not error.path.startswith('[') else ''}{error.path}"
            raise
    if extras:
        message.extra_json = _dumps({key: extras[key] for key in source if key in extras})
    return message


def _dumps(value: Any, *, ensure_ascii: bool = True) -> str:
    try:
        return json.dumps(value, allow_nan=False, default=_plain, ensure_ascii=ensure_ascii)
    except (TypeError, ValueError) as error:
        raise _NotJsonError("", str(error)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if _is_list(value):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _is_text(value: Any) -> bool:
    """Return whether protobuf can carry the text. It rejects half a surrogate pair, which JSON allows."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@cache
def _fields(kind: Any) -> dict[str, Any]:
    """Return the fields by name. `fields_by_name` rejects a key with half a surrogate pair, which JSON allows."""
    return {field.name: field for field in kind.fields}


def _put(message: Any, key: str, value: Any) -> bool:
    shape = _SHAPES.get(f"{message.DESCRIPTOR.name}.{key}")
    if shape is not None:
        return shape(message, value)
    fields = _fields(message.DESCRIPTOR)
    if f"{key}_json" in fields and key != "extra":
        return isinstance(value, Mapping) and _set(message, f"{key}_json", _dumps(value))
    if key not in fields or key.endswith("_json"):
        return False
    field = fields[key]
    choice = field.containing_oneof
    if choice is not None and len(choice.fields) > 1 and message.WhichOneof(choice.name):
        return False
    if field.message_type is None:
        return _put_scalars(message, field, value)
    if field.message_type.GetOptions().map_entry:
        return _put_map(message, field, value)
    return _put_messages(message, field, value) if field.is_repeated else _put_message(message, key, value)


def _set(message: Message, name: str, value: Any) -> bool:
    setattr(message, name, value)
    return True


def _fits(field: Any, value: Any) -> bool:
    if field.type == FieldDescriptor.TYPE_STRING:
        return _is_text(value)
    if field.type == FieldDescriptor.TYPE_BOOL or isinstance(value, bool):
        return field.type == FieldDescriptor.TYPE_BOOL and isinstance(value, bool)
    if field.type in _BITS:
        return isinstance(value, int) and -(1 << _BITS[field.type]) <= value < 1 << _BITS[field.type]
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= _LARGEST_EXACT)


def _put_scalars(message: Any, field: Any, value: Any) -> bool:
    if not field.is_repeated:
        return _fits(field, value) and _set(message, field.name, value)
    if not _is_list(value) or not value or not all(_fits(field, item) for item in value):
        return False
    getattr(message, field.name).extend(value)
    return True


def _put_map(message: Any, field: Any, value: Any) -> bool:
    item = field.message_type.fields_by_name["value"]
    if not isinstance(value, Mapping) or not value or not all(_fits(item, each) for each in value.values()):
        return False
    if not all(isinstance(key, int) or _is_text(key) for key in value):
        return False
    getattr(message, field.name).update({str(key): each for key, each in value.items()})
    return True


def _put_message(message: Any, name: str, value: Any) -> bool:
    child = getattr(message, name)
    if isinstance(value, type(child)):
        child.CopyFrom(value)
        return True
    if not isinstance(value, Mapping):
        return False
    child.SetInParent()
    _read(child, value)
    return True


def _put_messages(message: Any, field: Any, value: Any) -> bool:
    if not _is_list(value) or not value or not all(isinstance(item, Mapping | Message) for item in value):
        return False
    for position, item in enumerate(value):
        child = getattr(message, field.name).add()
        if isinstance(item, Message):
            child.CopyFrom(item)
            continue
        try:
            _read(child, item)
        except _NotJsonError as error:
            error.path = f"[{position}].{error.path}"
            raise
    return True


# The fields whose form differs from the JSON.


def _put_stop(message: Any, value: Any) -> bool:
    field = message.DESCRIPTOR.fields_by_name["stop"]
    return _put_scalars(message, field, [value] if isinstance(value, str) else value)


def _put_content(message: Any, value: Any) -> bool:
    if isinstance(value, str):
        return _is_text(value) and _set(message, "content", value)
    return _put_messages(message, message.DESCRIPTOR.fields_by_name["content_parts"], value)


def _put_arguments(message: Any, value: Any) -> bool:
    """Arguments are JSON text. The object itself, as other libraries keep it, becomes its text; None is none."""
    if value is None:
        return True
    if isinstance(value, Mapping) or _is_list(value):
        text = _dumps(value, ensure_ascii=False)
        return _set(message, "arguments", text if _is_text(text) else _dumps(value))
    return _is_text(value) and _set(message, "arguments", value)


def _put_tool_choice(message: Any, value: Any) -> bool:
    choice = message.tool_choice
    match value:
        case str():
            choice.mode = value
        case {"type": "function", "function": {"name": str(name), **rest}, **others} if not rest and not others:
            choice.function_name = name
        case {"type": "custom", "custom": {"name": str(name), **rest}, **others} if not rest and not others:
            choice.custom_name = name
        case {"type": "allowed_tools", "allowed_tools": Mapping() as allowed, **others} if not others:
            choice.allowed_tools.SetInParent()
            _read(choice.allowed_tools, allowed)
        case Mapping():
            choice.raw_json = _dumps(value)
        case Message():
            return _put_message(message, "tool_choice", value)
        case _:
            return False
    return True


def _put_function_call(message: Any, value: Any) -> bool:
    match value:
        case str():
            message.function_call.mode = value
        case {"name": str(name), **rest} if not rest:
            message.function_call.name = name
        case Message():
            return _put_message(message, "function_call", value)
        case _:
            return False
    return True


def _put_allowed_tools(message: Any, value: Any) -> bool:
    if not _is_list(value) or not value or not all(isinstance(item, Mapping) for item in value):
        return False
    message.tools_json.extend(map(_dumps, value))
    return True


def _put_voice(message: Any, value: Any) -> bool:
    match value:
        case str():
            message.voice = value
        case {"id": str(identity), **rest} if not rest:
            message.voice_id = identity
        case _:
            return False
    return True


def _put_user_location(message: Any, value: Any) -> bool:
    """The members of `approximate` move up one level, beside `type`."""
    match value:
        case {"type": str(kind), "approximate": Mapping() as approximate, **others} if not others:
            inner = {key: item for key, item in approximate.items() if key != "type"}
            location = _read(message.user_location, inner)
            location.type = kind
            if "type" in approximate:  # an extra, because the field holds the outer `type`
                extras = json.loads(location.extra_json or "{}")
                location.extra_json = _dumps({key: approximate[key] for key in approximate if key in {"type", *extras}})
            return True
        case Message():
            return _put_message(message, "user_location", value)
    return False


def _put_policy(message: Any, value: Any) -> bool:
    """The modes move up two levels."""
    if not isinstance(value, Mapping) or not value or not all(_is_mode(key, item) for key, item in value.items()):
        return False
    for key, item in value.items():
        setattr(message, f"{key}_mode", item["mode"])
    return True


def _is_mode(key: str, value: Any) -> bool:
    """Return whether this is a mode alone, such as `"input": {"mode": "block"}`."""
    return (
        key in ("input", "output")
        and isinstance(value, Mapping)
        and [*value] == ["mode"]
        and type(value["mode"]) is str
    )


def _never(_: Any, __: Any) -> bool:
    """Reject a field whose name is no key of the JSON."""
    return False


_SHAPES: dict[str, _Put] = {
    "CreateChatCompletionRequest.stop": _put_stop,
    "CreateChatCompletionRequest.tool_choice": _put_tool_choice,
    "CreateChatCompletionRequest.function_call": _put_function_call,
    "FunctionCall.arguments": _put_arguments,
    "AllowedTools.tools": _put_allowed_tools,
    "AllowedTools.tools_json": _never,
    "AudioOptions.voice": _put_voice,
    "AudioOptions.voice_id": _never,
    "ChatMessage.content": _put_content,
    "ChatMessage.content_parts": _never,
    "Prediction.content": _put_content,
    "Prediction.content_parts": _never,
    "WebSearchOptions.user_location": _put_user_location,
    "ModerationOptions.policy": _put_policy,
    "ModerationOptions.input_mode": _never,
    "ModerationOptions.output_mode": _never,
}
