"""Maps JSON objects to messages, driven by the messages' descriptors.

If the value of a key fits the field of that name, the field gets it. All other keys, unknown or of another type, stay
in the message's `extra_json`. So no data is lost, and no deviation is an error. Null means absent.
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
"""Sets a value in a message; returns False if it does not fit."""

_LARGEST_EXACT = 2**53
"""Integers beyond it are not all doubles."""
_INT_BITS = {FieldDescriptor.TYPE_INT32: 31, FieldDescriptor.TYPE_INT64: 63}


class Pieces:
    """A large message in place of its JSON object: the encodings of its parts, because a merge of them is fast."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    def write(self, message: Message) -> bool:
        """Fill the empty message; return True."""
        message.SetInParent()
        for part in self._parts:
            message.MergeFromString(part)
        return True


def read(message: Message, source: JsonObject) -> None:
    """Fill an empty message from a JSON object. Raises ValueError if an extra is nested too deeply."""
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
    if "logprob" in setters and source.get("logprob") is None:
        extras = {**(extras or {}), "logprob": None}  # because 0 would be a certain token
    if extras is not None:
        message.extra_json = jsontext.dumps(extras).decode()  # type: ignore[attr-defined]


@cache
def _setters(kind: type[Message]) -> dict[str, Setter]:
    """Return the setters of a message type by JSON key."""
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
    raise TypeError(f"{field.full_name}: fields of this type have no JSON form; add one")


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
    """Return a setter that ignores "": some servers repeat an empty name or id in each delta of a stream."""
    string = _string(name)
    return lambda message, value: value == "" or string(message, value)


def _finish_reason(name: str, *none: str) -> Setter:
    """Return a setter that ignores texts without a reason: some servers write null and None as texts."""
    string = _string(name)
    texts = {"null", "none", *none}
    return lambda message, value: (type(value) is str and value.strip().lower() in texts) or string(message, value)


def to_integer(value: Any) -> int | None:
    """Return the integer value of a JSON number, or None. Some servers write integers with a fraction (1.0)."""
    if type(value) is int:
        return value
    return int(value) if type(value) is float and value.is_integer() else None


def _integer(name: str, limit: int) -> Setter:
    def put(message: Any, value: Any) -> bool:
        number = to_integer(value)
        if number is None or not -limit <= number < limit:
            return False
        setattr(message, name, number)
        return True

    return put


def _double(name: str) -> Setter:
    def put(message: Any, value: Any) -> bool:
        if isinstance(value, float):
            if type(value) is not float and value - value != 0:  # a written number beyond the range of a double
                return False
        elif type(value) is not int or abs(value) > _LARGEST_EXACT:
            return False
        setattr(message, name, value)
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
            return type(value) is Pieces and value.write(getattr(message, name))
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
    """Return a setter for a field of a oneof. If an object has two keys of the oneof, the second is an extra."""
    if field.containing_oneof is None or field.containing_oneof.name.startswith("_"):  # "_x": `optional x`
        return setter
    oneof = field.containing_oneof.name
    return lambda message, value: message.WhichOneof(oneof) is None and setter(message, value)


# Setters of the fields that have another shape in JSON.


def _content(message: Any, value: Any) -> bool:
    """Set content: text, or an array of parts together with their text."""
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
    """Set arguments: JSON text. Some servers send the object itself."""
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
    "Choice.finish_reason": _finish_reason("finish_reason"),
    "ChunkChoice.finish_reason": _finish_reason("finish_reason", ""),
}
_WITHOUT_KEY = {"ChatMessage.content_parts", "Delta.content_parts"}
