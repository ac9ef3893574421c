"""JSON objects to messages, driven by the messages' descriptors.

One rule keeps everything: a key whose value fits the field of that name goes into the field; every other key, unknown
or of another type than declared, stays in the message's `extra_json`. So no oddity is lost, and none is an error.
JSON null means absent.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from chatrpc_server.core.openai import jsontext
from chatrpc_server.core.text import well_formed

JsonObject = dict[str, Any]
Setter = Callable[[Any, Any], bool]
"""Puts a value into a message; False if it does not fit."""

_INT_BITS = {FieldDescriptor.TYPE_INT32: 31, FieldDescriptor.TYPE_INT64: 63}


def read(message: Message, source: JsonObject) -> None:
    """Fills an empty message from a JSON object. Raises ValueError for what is nested too deeply to keep."""
    setters = _setters(type(message))  # type: ignore[arg-type]  # mypy looks at the instances' __hash__
    extras: JsonObject | None = None
    for key, value in source.items():
        if value is None:
            continue
        setter = setters.get(key)
        if setter is None or not setter(message, value):
            if extras is None:
                extras = {}
            extras[key] = value
    if extras is not None:
        message.extra_json = jsontext.dumps(extras).decode()  # type: ignore[attr-defined]


@cache
def _setters(kind: type[Message]) -> dict[str, Setter]:
    """JSON key to setter of a message type."""
    setters: dict[str, Setter] = {}
    field: Any
    for field in kind.DESCRIPTOR.fields:
        path = f"{kind.DESCRIPTOR.name}.{field.name}"
        if field.name == "extra_json" or path in _WITHOUT_KEY:
            continue
        setters[field.name.removesuffix("_json")] = _SPECIAL.get(path) or _setter(field)
    return setters


# Setters that follow from a field's type.


def _setter(field: FieldDescriptor) -> Setter:
    name = field.name
    if name.endswith("_json"):
        return _json_text(name)
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            return _string_map(name)
        if field.is_repeated:
            return _messages(name)
        return _once(field, _message(name))
    if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
        return _once(field, _string(name))
    if field.type in _INT_BITS:
        return _integer(name, 1 << _INT_BITS[field.type])
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return _double(name)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _byte_values(name)
    raise TypeError(f"{field.full_name}: no JSON form is known for this type of field")


def _string(name: str) -> Setter:
    def put(message: Any, value: Any) -> bool:
        if type(value) is not str:
            return False
        try:
            setattr(message, name, value)
        except UnicodeEncodeError:
            setattr(message, name, well_formed(value))
        return True

    return put


def _nonempty(name: str) -> Setter:
    """For the names and ids of a stream, of which some servers repeat an empty one in each delta."""
    string = _string(name)
    return lambda message, value: value == "" or string(message, value)


def whole(value: Any) -> int | None:
    """The integer that a JSON number stands for; some servers write all theirs with a fraction."""
    if type(value) is int:
        return value
    return int(value) if type(value) is float and value.is_integer() else None


def _integer(name: str, limit: int) -> Setter:
    def put(message: Any, value: Any) -> bool:
        number = whole(value)
        if number is None or not -limit <= number < limit:
            return False
        setattr(message, name, number)
        return True

    return put


def _double(name: str) -> Setter:
    def put(message: Any, value: Any) -> bool:
        if type(value) is not float and type(value) is not int:
            return False
        try:
            setattr(message, name, float(value))
        except OverflowError:
            return False
        return True

    return put


def _byte_values(name: str) -> Setter:
    def put(message: Any, value: Any) -> bool:
        if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 256 for item in value):
            return False
        setattr(message, name, bytes(value))
        return True

    return put


def _json_text(name: str) -> Setter:
    def put(message: Any, value: Any) -> bool:
        setattr(message, name, jsontext.dumps(value).decode())
        return True

    return put


def _string_map(name: str) -> Setter:
    def put(message: Any, value: Any) -> bool:
        if not isinstance(value, dict) or not all(type(item) is str for item in value.values()):
            return False
        getattr(message, name).update({well_formed(key): well_formed(item) for key, item in value.items()})
        return True

    return put


def _message(name: str) -> Setter:
    def put(message: Any, value: Any) -> bool:
        if type(value) is not dict:
            return False
        child = getattr(message, name)
        child.SetInParent()
        read(child, value)
        return True

    return put


def _messages(name: str) -> Setter:
    def put(message: Any, value: Any) -> bool:
        if type(value) is not list or not all(type(item) is dict for item in value):
            return False
        children = getattr(message, name)
        for item in value:
            read(children.add(), item)
        return True

    return put


def _once(field: FieldDescriptor, setter: Setter) -> Setter:
    """A oneof holds one value; should an object have two of its keys, the second stays an extra."""
    if field.containing_oneof is None or field.containing_oneof.name.startswith("_"):  # "_x": `optional x`
        return setter
    oneof = field.containing_oneof.name
    return lambda message, value: message.WhichOneof(oneof) is None and setter(message, value)


# Setters of the fields that are shaped otherwise in JSON.


def _content(message: Any, value: Any) -> bool:
    """Text, or an array of parts with their text beside it."""
    if type(value) is str:
        return _content_text(message, value)
    if not _parts(message, value):
        return False
    text = "".join(part.text for part in message.content_parts if part.HasField("text"))
    if text:
        message.content = text
    return True


_content_text = _string("content")
_parts = _messages("content_parts")


def _arguments(message: Any, value: Any) -> bool:
    """JSON text; some servers send the object itself."""
    if type(value) is str:
        return _arguments_text(message, value)
    if not isinstance(value, dict | list):
        return False
    message.arguments = jsontext.dumps(value).decode()
    return True


_arguments_text = _string("arguments")

_SPECIAL: dict[str, Setter] = {
    "ChatMessage.content": _content,
    "Delta.content": _content,
    "Delta.role": _nonempty("role"),
    "FunctionCall.arguments": _arguments,
    "FunctionCallDelta.arguments": _arguments,
    "FunctionCallDelta.name": _nonempty("name"),
    "CustomToolCallDelta.name": _nonempty("name"),
    "ToolCallDelta.id": _nonempty("id"),
    "ChunkChoice.finish_reason": _nonempty("finish_reason"),
}
_WITHOUT_KEY = {"ChatMessage.content_parts", "Delta.content_parts"}
