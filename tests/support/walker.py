"""Converts a response message back to its JSON; written from the contract alone, independent of `core/`.

It applies the contract's rules: `x_json` is the text of key `x`, `content_parts` is the array `content`, bytes are an
array of numbers, and `extra_json` holds keys without a field. Values that protobuf cannot distinguish from an absent
key are omitted on both sides: null, an empty array of a repeated field, 0 or "" in a field without presence.
"""

import json
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def to_json(message: Message) -> dict[str, Any]:
    """Return the JSON object of a message."""
    out: dict[str, Any] = {}
    for field, value in message.ListFields():
        name = field.name
        if name in ("content_parts", "extra_json"):
            continue
        if name.endswith("_json"):
            out[name.removesuffix("_json")] = json.loads(value)
        elif isinstance(value, bytes):
            out[name] = list(value)
        elif field.message_type is None:
            out[name] = list(value) if field.is_repeated else value
        elif field.message_type.GetOptions().map_entry:
            out[name] = dict(value)
        else:
            out[name] = [to_json(item) for item in value] if field.is_repeated else to_json(value)
    parts = getattr(message, "content_parts", ())
    if parts:
        texts = "".join(part.text for part in parts if part.HasField("text"))
        assert out.get("content", "") == texts, "beside parts, `content` must be their text"
        out["content"] = [to_json(part) for part in parts]
    extras = json.loads(getattr(message, "extra_json", "") or "{}")
    for key, value in extras.items():
        assert key not in out or key == "usage", f"{key} is there twice"
        out[key] = value
    return out


def prune(value: Any, kind: Any) -> Any:
    """Remove values that protobuf cannot distinguish from an absent key. `kind` is the message's descriptor."""
    if not isinstance(value, dict):
        return value
    fields = {f.name: f for f in kind.fields if f.name != "extra_json"}
    pruned = {}
    for key, item in value.items():
        field = fields.get(key)
        if item is None or (field is not None and _is_unset(field, item)):
            continue
        if field is not None and field.message_type is not None and not field.message_type.GetOptions().map_entry:
            if isinstance(item, list):
                item = [prune(element, field.message_type) for element in item]
            else:
                item = prune(item, field.message_type)
        elif key == "content" and isinstance(item, list):
            parts = kind.fields_by_name["content_parts"].message_type
            item = [prune(element, parts) for element in item]
        pruned[key] = item
    return pruned


def _is_unset(field: FieldDescriptor, value: Any) -> bool:
    if field.is_repeated:
        return value in ([], {})
    if field.message_type is not None or field.has_presence:
        return False
    return (value == 0 and not isinstance(value, bool)) or value == ""
