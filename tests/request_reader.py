"""The JSON body of a request back to its message, written from the contract alone and independent of `core/`.

A key whose value has the form of the field of that name goes into the field; every other key stays in `extra_json`,
null included. The shapes that differ from the JSON are the table `SHAPES`.
"""

import json
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest

Put = Callable[[Any, Any], bool]
"""Puts a JSON value into a message; False if it has another form."""

BITS = {FieldDescriptor.TYPE_INT32: 31, FieldDescriptor.TYPE_INT64: 63}


def read_request(body: bytes) -> CreateChatCompletionRequest:
    """The request that became this body."""
    return read(CreateChatCompletionRequest(), json.loads(body))  # type: ignore[no-any-return]


def read(message: Any, source: dict[str, Any]) -> Any:
    """Fills an empty message."""
    extras = {key: value for key, value in source.items() if not put(message, key, value)}
    if extras:
        message.extra_json = dumps(extras)
    return message


def dumps(value: Any) -> str:
    """JSON text, as this module writes it into messages."""
    return json.dumps(value)


def put(message: Message, key: str, value: Any) -> bool:
    """Puts a value where the contract says that this key is mirrored."""
    shape = SHAPES.get(f"{message.DESCRIPTOR.name}.{key}")
    if shape is not None:
        return shape(message, value)
    fields = {field.name: field for field in message.DESCRIPTOR.fields}
    if f"{key}_json" in fields and key != "extra":
        return isinstance(value, dict) and put_scalar(message, f"{key}_json", dumps(value))
    if key not in fields or key.endswith("_json"):
        return False
    field = fields[key]
    if field.message_type is None:
        return put_scalars(message, field, value)
    if field.message_type.GetOptions().map_entry:
        return put_map(message, field, value)
    return put_messages(message, field, value) if field.is_repeated else put_message(message, key, value)


def put_scalars(message: Any, field: FieldDescriptor, value: Any) -> bool:
    """A scalar, or an array of texts."""
    if not field.is_repeated:
        return fits(field, value) and put_scalar(message, field.name, value)
    if not isinstance(value, list) or not value or not all(fits(field, item) for item in value):
        return False
    getattr(message, field.name).extend(value)
    return True


def put_scalar(message: Any, name: str, value: Any) -> bool:
    """A value that is known to fit."""
    setattr(message, name, value)
    return True


def fits(field: FieldDescriptor, value: Any) -> bool:
    """Has the value the form of the field?"""
    if field.type in BITS:
        return type(value) is int and -(1 << BITS[field.type]) <= value < 1 << BITS[field.type]
    kinds = {
        FieldDescriptor.TYPE_STRING: (str,),
        FieldDescriptor.TYPE_BOOL: (bool,),
        FieldDescriptor.TYPE_DOUBLE: (int, float),
    }
    return type(value) in kinds[field.type]


def put_map(message: Any, field: FieldDescriptor, value: Any) -> bool:
    """An object of texts or of numbers."""
    item = field.message_type.fields_by_name["value"]
    if not isinstance(value, dict) or not value or not all(fits(item, each) for each in value.values()):
        return False
    getattr(message, field.name).update(value)
    return True


def put_message(message: Any, name: str, value: Any) -> bool:
    """An object."""
    if not isinstance(value, dict):
        return False
    child = getattr(message, name)
    child.SetInParent()
    read(child, value)
    return True


def put_messages(message: Any, field: FieldDescriptor, value: Any) -> bool:
    """An array of objects."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return False
    for item in value:
        read(getattr(message, field.name).add(), item)
    return True


# The shapes that differ.


def put_stop(message: Any, value: Any) -> bool:
    """One sequence is a string."""
    field = message.DESCRIPTOR.fields_by_name["stop"]
    return put_scalars(message, field, [value] if isinstance(value, str) else value)


def put_content(message: Any, value: Any) -> bool:
    """Text, or an array of parts."""
    if isinstance(value, str):
        return put_scalar(message, "content", value)
    return put_messages(message, message.DESCRIPTOR.fields_by_name["content_parts"], value)


def put_tool_choice(message: Any, value: Any) -> bool:
    """A string, one of three objects, or anything else that is an object."""
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
            read(choice.allowed_tools, allowed)
        case dict():
            choice.raw_json = dumps(value)
        case _:
            return False
    return True


def put_function_call(message: Any, value: Any) -> bool:
    """A string, or an object with a name."""
    match value:
        case str():
            message.function_call.mode = value
        case {"name": str(name), **rest} if not rest:
            message.function_call.name = name
        case _:
            return False
    return True


def put_allowed_tools(message: Any, value: Any) -> bool:
    """Objects, each as its text."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return False
    message.tools_json.extend(map(dumps, value))
    return True


def put_voice(message: Any, value: Any) -> bool:
    """A string, or an object with an id."""
    match value:
        case str():
            message.voice = value
        case {"id": str(identity), **rest} if not rest:
            message.voice_id = identity
        case _:
            return False
    return True


def put_user_location(message: Any, value: Any) -> bool:
    """What is inside of `approximate` is one level up; `type` is beside it."""
    match value:
        case {"type": str(kind), "approximate": dict(approximate), **others} if not others:
            inner = {key: item for key, item in approximate.items() if key != "type"}
            location = read(message.user_location, inner)
            location.type = kind
            if "type" in approximate:  # not the field, which is the outer one
                extras = json.loads(location.extra_json or "{}")
                location.extra_json = dumps({key: approximate[key] for key in approximate if key in {"type", *extras}})
            return True
    return False


def put_policy(message: Any, value: Any) -> bool:
    """The modes are two levels up."""
    match value:
        case {**modes} if modes and all(is_mode(key, item) for key, item in modes.items()):
            for key, item in modes.items():
                setattr(message, f"{key}_mode", item["mode"])
            return True
    return False


def is_mode(key: str, value: Any) -> bool:
    """`"input": {"mode": "block"}`, say."""
    return (
        key in ("input", "output") and isinstance(value, dict) and [*value] == ["mode"] and type(value["mode"]) is str
    )


SHAPES: dict[str, Put] = {
    "CreateChatCompletionRequest.stop": put_stop,
    "CreateChatCompletionRequest.tool_choice": put_tool_choice,
    "CreateChatCompletionRequest.function_call": put_function_call,
    "AllowedTools.tools": put_allowed_tools,
    "AllowedTools.tools_json": lambda *_: False,
    "AudioOptions.voice": put_voice,
    "AudioOptions.voice_id": lambda *_: False,
    "ChatMessage.content": put_content,
    "ChatMessage.content_parts": lambda *_: False,
    "Prediction.content": put_content,
    "Prediction.content_parts": lambda *_: False,
    "WebSearchOptions.user_location": put_user_location,
    "ModerationOptions.policy": put_policy,
    "ModerationOptions.input_mode": lambda *_: False,
    "ModerationOptions.output_mode": lambda *_: False,
}
