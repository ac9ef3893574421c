"""Keyword arguments, as OpenAI's SDK takes them, to the request message; in short, JSON to the contract.

The rules are those of chatrpc/v1/chat_service.proto, read from the other side. A value with the form of its field goes
into the field. Any other goes into the `extra_json` of the message where it stands, and reaches the upstream as it is:
null, a key that nobody has heard of, a text where a number was expected. What is right is for the upstream to judge.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest

_Put = Callable[[Any, Any], bool]
"""Puts a JSON value into a message; False if it has another form."""
_BITS = {FieldDescriptor.TYPE_INT32: 31, FieldDescriptor.TYPE_INT64: 63}
_KINDS = {
    FieldDescriptor.TYPE_STRING: (str,),
    FieldDescriptor.TYPE_BOOL: (bool,),
    FieldDescriptor.TYPE_DOUBLE: (int, float),
}


def request(
    model: str, messages: Iterable[ChatMessage | Mapping[str, Any]], parameters: Mapping[str, Any]
) -> CreateChatCompletionRequest:
    """The request for these parameters. Raises TypeError where no message can be made of them.

    Parameters are those of `POST /v1/chat/completions`; None is as good as not given. `extra_body` is an object whose
    keys are sent along, as with OpenAI's SDK.
    """
    if not isinstance(model, str):
        raise TypeError(f"model is to be the model's name, not {type(model).__name__}")
    if isinstance(messages, str | Mapping | ChatMessage):
        raise TypeError("messages is to be a list of messages, such as [{'role': 'user', 'content': 'Hello!'}]")
    out = CreateChatCompletionRequest(model=model)
    for position, message in enumerate(messages):
        if isinstance(message, ChatMessage):
            out.messages.append(message)
        elif isinstance(message, Mapping):
            _read(out.messages.add(), message, f"messages[{position}]")
        else:
            raise TypeError(f"messages[{position}] is to be a dict or a ChatMessage, not {type(message).__name__}")
    given = {key: value for key, value in parameters.items() if value is not None and key != "extra_body"}
    extra = parameters.get("extra_body") or {}
    if not isinstance(extra, Mapping):
        raise TypeError(f"extra_body is to be a dict, not {type(extra).__name__}")
    if twice := sorted(given.keys() & extra.keys()):
        raise TypeError(f"given twice, as a parameter and in extra_body: {', '.join(twice)}")
    _read(out, {**given, **extra}, "")
    return out


def from_json(body: Mapping[str, Any]) -> CreateChatCompletionRequest:
    """The request whose JSON, as OpenAI's API takes it, this is. Raises TypeError where it is none."""
    request: CreateChatCompletionRequest = _read(CreateChatCompletionRequest(), body, "")
    return request


def _read(message: Any, source: Mapping[str, Any], path: str) -> Any:
    """Fills an empty message."""
    extras = {key: value for key, value in source.items() if not _put(message, key, value)}
    if extras:
        try:
            message.extra_json = _dumps(extras)
        except (TypeError, ValueError) as error:
            where = f"{path}." if path else ""
            raise TypeError(f"{where}{next(iter(extras))} cannot be sent as JSON: {error}") from None
    return message


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


@cache
def _fields(kind: Any) -> dict[str, Any]:
    """By name. `fields_by_name` itself takes no key with half a surrogate pair, which JSON may have."""
    return {field.name: field for field in kind.fields}


def _put(message: Message, key: str, value: Any) -> bool:
    shape = _SHAPES.get(f"{message.DESCRIPTOR.name}.{key}")
    if shape is not None:
        return shape(message, value)
    fields = _fields(message.DESCRIPTOR)
    if f"{key}_json" in fields and key != "extra":
        return isinstance(value, Mapping) and _set(message, f"{key}_json", _dumps(value))
    if key not in fields or key.endswith("_json"):
        return False
    field = fields[key]
    if field.message_type is None:
        return _put_scalars(message, field, value)
    if field.message_type.GetOptions().map_entry:
        return _put_map(message, field, value)
    return _put_messages(message, field, value) if field.is_repeated else _put_message(message, key, value)


def _set(message: Message, name: str, value: Any) -> bool:
    setattr(message, name, value)
    return True


def _fits(field: Any, value: Any) -> bool:
    if field.type in _BITS:
        return type(value) is int and -(1 << _BITS[field.type]) <= value < 1 << _BITS[field.type]
    return type(value) in _KINDS[field.type]


def _put_scalars(message: Any, field: Any, value: Any) -> bool:
    if not field.is_repeated:
        return _fits(field, value) and _set(message, field.name, value)
    if not isinstance(value, list | tuple) or not value or not all(_fits(field, item) for item in value):
        return False
    getattr(message, field.name).extend(value)
    return True


def _put_map(message: Any, field: Any, value: Any) -> bool:
    item = field.message_type.fields_by_name["value"]
    if not isinstance(value, Mapping) or not value or not all(_fits(item, each) for each in value.values()):
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
    _read(child, value, name)
    return True


def _put_messages(message: Any, field: Any, value: Any) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    if not all(isinstance(item, Mapping | Message) for item in value):
        return False
    for position, item in enumerate(value):
        child = getattr(message, field.name).add()
        if isinstance(item, Message):
            child.CopyFrom(item)
        else:
            _read(child, item, f"{field.name}[{position}]")
    return True


# The shapes that differ from the JSON.


def _put_stop(message: Any, value: Any) -> bool:
    field = message.DESCRIPTOR.fields_by_name["stop"]
    return _put_scalars(message, field, [value] if isinstance(value, str) else value)


def _put_content(message: Any, value: Any) -> bool:
    if isinstance(value, str):
        return _set(message, "content", value)
    return _put_messages(message, message.DESCRIPTOR.fields_by_name["content_parts"], value)


def _put_tool_choice(message: Any, value: Any) -> bool:
    choice = message.tool_choice
    match value:
        case str():
            choice.mode = value
        case {"type": "function", "function": {"name": str(name), **rest}, **others} if not rest and not others:
            choice.function_name = name
        case {"type": "custom", "custom": {"name": str(name), **rest}, **others} if not rest and not others:
            choice.custom_name = name
        case {"type": "allowed_tools", "allowed_tools": dict(allowed), **others} if not others:
            choice.allowed_tools.SetInParent()
            _read(choice.allowed_tools, allowed, "tool_choice.allowed_tools")
        case dict():
            choice.raw_json = _dumps(value)
        case _:
            return _put_message(message, "tool_choice", value)
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
    if not isinstance(value, list | tuple) or not value or not all(isinstance(item, Mapping) for item in value):
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
    """What is inside of `approximate` is one level up; `type` is beside it."""
    match value:
        case {"type": str(kind), "approximate": dict(approximate), **others} if not others:
            inner = {key: item for key, item in approximate.items() if key != "type"}
            location = _read(message.user_location, inner, "user_location")
            location.type = kind
            if "type" in approximate:  # not the field, which is the outer one
                extras = json.loads(location.extra_json or "{}")
                location.extra_json = _dumps({key: approximate[key] for key in approximate if key in {"type", *extras}})
            return True
        case Message():
            return _put_message(message, "user_location", value)
    return False


def _put_policy(message: Any, value: Any) -> bool:
    """The modes are two levels up."""
    if not isinstance(value, Mapping) or not value or not all(_is_mode(key, item) for key, item in value.items()):
        return False
    for key, item in value.items():
        setattr(message, f"{key}_mode", item["mode"])
    return True


def _is_mode(key: str, value: Any) -> bool:
    """`"input": {"mode": "block"}`, say."""
    return (
        key in ("input", "output")
        and isinstance(value, Mapping)
        and [*value] == ["mode"]
        and type(value["mode"]) is str
    )


def _never(_: Any, __: Any) -> bool:
    """A field's name that is no key of the JSON."""
    return False


_SHAPES: dict[str, _Put] = {
    "CreateChatCompletionRequest.stop": _put_stop,
    "CreateChatCompletionRequest.tool_choice": _put_tool_choice,
    "CreateChatCompletionRequest.function_call": _put_function_call,
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
