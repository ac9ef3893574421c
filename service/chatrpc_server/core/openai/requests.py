"""Maps a ChatRequest (proto) to the JSON body of the upstream request. Nothing here depends on the call.

The rules are those of the contract (protos/chatrpc/v1/chat_service.proto): same names, same nesting, no key for an
unset field, JSON integers for integral doubles. `x_json` is the JSON text of key `x`, and `extra_json` is merged into
the object of its message. Most fields follow from their descriptors; `_SPECIAL` holds the exceptions. Only the
structure is checked. The upstream checks the values, because each provider has other limits.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from chatrpc.v1 import chat_message_pb2, chat_request_pb2
from chatrpc_server.core.errors import InvalidRequest
from chatrpc_server.core.openai import jsontext
from chatrpc_server.core.openai.usage import StreamUsage
from chatrpc_server.core.upstream import ChatRequest

JsonObject = dict[str, Any]
_Writer = Callable[[Message, JsonObject, Any], None]
_Finisher = Callable[[Any, JsonObject], None]

_EXACT_FLOAT = 2.0**53
"""Larger doubles have no fraction. Written as integers, they would show digits that a double cannot hold."""
_MANY = 1000
"""Elements of a list from which each becomes JSON text of its own."""
_LARGE_EXTRAS = 4096
"""Characters of `extra_json` from which its values become JSON text again at once."""
_OWN_KEYS = ("model", "messages", "stream")
"""Top-level keys that `extra_json` must not set, because they determine the call."""
_RESPONSE_ONLY_KEYS = {"ChatMessage": ("annotations",), "ToolCall": ("index",)}
"""Keys of a response, by message type, that upstreams reject in a request."""
_RESPONSE_ONLY_KEYS_OF_ASSISTANTS = ("logprobs", "finish_reason", "index", "usage", "obfuscation")
"""The same of an assistant's message: some servers write keys of the choice into it."""


def unary_body(request: ChatRequest) -> bytes:
    """Return the body of `POST {base_url}/chat/completions` for a unary call. Raises `InvalidRequest`."""
    return _dump(_write_request(request, stream=False))


def stream_body(request: ChatRequest, usage: StreamUsage) -> bytes:
    """Return the same body for a stream."""
    out = _write_request(request, stream=True)
    out["stream"] = True
    usage.write(out)
    return _dump(out)


def _write_request(request: ChatRequest, *, stream: bool) -> JsonObject:
    if not request.messages:
        raise InvalidRequest("messages", "is empty; add at least one message")
    if request.HasField("stream") and request.stream != stream:
        rpc = "CreateChatCompletion" if stream else "CreateChatCompletionStream"
        value = str(request.stream).lower()
        raise InvalidRequest("stream", f"is {value}, but this RPC determines it; leave it unset or call {rpc}")
    return _write(request)


def _dump(out: JsonObject) -> bytes:
    try:
        return jsontext.dumps(out)
    except ValueError as error:
        raise _too_deep(error) from None


def _raw(value: Any) -> jsontext.Raw:
    try:
        return jsontext.raw(value)
    except ValueError as error:
        raise _too_deep(error) from None


def _too_deep(error: ValueError) -> InvalidRequest:
    return InvalidRequest("extra_json", f"is {error}; use fewer levels")


def _write(message: Message) -> JsonObject:
    out: JsonObject = {}
    writers, finish = _plan(type(message))  # type: ignore[arg-type]  # mypy looks at the instances' __hash__
    for field, value in message.ListFields():
        writer = writers.get(field.number)
        if writer is not None:
            writer(message, out, value)
    if finish is not None:
        finish(message, out)
    extra_json = getattr(message, "extra_json", "")
    if extra_json:
        _merge(message, out, extra_json)
    if _is_assistant(message):
        out.setdefault("content", None)  # as it was received: upstreams require the key
    return out


def _is_assistant(message: Message) -> bool:
    return isinstance(message, chat_message_pb2.ChatMessage) and message.role == "assistant"


def _merge(message: Message, out: JsonObject, extra_json: str) -> None:
    extras = _parse("extra_json", extra_json, dict)
    if isinstance(message, ChatRequest):
        for key in _OWN_KEYS:
            if key in extras:
                raise InvalidRequest("extra_json", f'must not set "{key}"; use the field {key}')
    name = message.DESCRIPTOR.name
    for key in _RESPONSE_ONLY_KEYS.get(name, ()):
        extras.pop(key, None)
    if _is_assistant(message):
        for key in _RESPONSE_ONLY_KEYS_OF_ASSISTANTS:
            extras.pop(key, None)
    for key, value in extras.items():
        # A call always has both keys. A number that an upstream sent as arguments replaces the empty text.
        is_odd = name in ("FunctionCall", "CustomToolCall") and out.get(key) == "" and isinstance(value, int | float)
        if key in out and not is_odd:
            raise InvalidRequest("extra_json", f'sets "{key}", which a field of this message also sets; set only one')
        # Large extras become text, because the objects of all messages together would take long to write and to free.
        is_large = len(extra_json) >= _LARGE_EXTRAS and isinstance(value, dict | list)
        out[key] = _raw(value) if is_large else value


def _parse(field: str, text: str, *kinds: type) -> Any:
    names = " or ".join(_KIND_NAMES[kind] for kind in kinds)
    try:
        value = jsontext.loads_exactly(text)
    except jsontext.TooManyValues as error:
        raise InvalidRequest(field, f"is too large: {error}; send fewer values") from None
    except ValueError as error:
        raise InvalidRequest(field, f"is not JSON ({error}); use the text of {names}") from None
    if not isinstance(value, kinds):
        raise InvalidRequest(field, f"is {_KIND_NAMES[type(value)]} in JSON; use {names}")
    return value


_KIND_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


# Writers that follow from a field's type.


def _number(field: str, value: float) -> float | int:
    if value.is_integer() and abs(value) < _EXACT_FLOAT:
        return int(value)
    if value - value != 0:  # NaN and the infinities
        raise InvalidRequest(field, f"is {value}; JSON allows only finite numbers")
    return value


def _child(path: str, message: Message) -> JsonObject:
    try:
        return _write(message)
    except InvalidRequest as error:
        raise error.inside(path) from None


def _children(path: str, messages: Any) -> list[Any]:
    if len(messages) < _MANY:
        return [_child(f"{path}[{position}]", message) for position, message in enumerate(messages)]
    # Texts, because objects take several times their memory.
    return [_raw(_child(f"{path}[{position}]", message)) for position, message in enumerate(messages)]


def _writer(field: FieldDescriptor) -> _Writer | None:
    key = field.name
    if key == "extra_json":
        return None
    if key.endswith("_json"):
        return _json_text(key)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if field.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_DOUBLE:
            return lambda _, out, value: _set(out, key, {k: _number(f'{key}["{k:.64}"]', v) for k, v in value.items()})
        # A comprehension, because `dict` would copy all entries in one step in C.
        return lambda _, out, value: _set(out, key, {k: value[k] for k in value})
    if field.message_type is not None:
        if field.is_repeated:
            return lambda _, out, value: _set(out, key, _children(key, value))
        return lambda _, out, value: _set(out, key, _child(key, value))
    if field.is_repeated:
        return lambda _, out, value: _set(out, key, list(value))
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return lambda _, out, value: _set(out, key, _number(key, value))
    if field.type == FieldDescriptor.TYPE_STRING:
        return lambda _, out, value: _set(out, key, jsontext.of_text(value))
    return lambda _, out, value: _set(out, key, value)


def _json_text(field: str) -> _Writer:
    key = field.removesuffix("_json")

    def write(_: Message, out: JsonObject, value: str) -> None:
        _parse(field, value, dict)
        out[key] = jsontext.Raw(value)

    return write


def _set(out: JsonObject, key: str, value: Any) -> None:
    out[key] = value


# Writers of the fields that have another shape in JSON.


def _nothing(_: Message, __: JsonObject, ___: Any) -> None:
    """Write nothing, because another writer writes the field, or no upstream accepts it."""


def _stop(_: Message, out: JsonObject, value: Any) -> None:
    # Send one sequence as a string, because the schema of some servers has no array here.
    out["stop"] = value[0] if len(value) == 1 else list(value)


def _tool_choice(_: Message, out: JsonObject, value: chat_request_pb2.ToolChoice) -> None:
    match value.WhichOneof("choice"):
        case "mode":
            out["tool_choice"] = value.mode
        case "function_name":
            out["tool_choice"] = {"type": "function", "function": {"name": value.function_name}}
        case "custom_name":
            out["tool_choice"] = {"type": "custom", "custom": {"name": value.custom_name}}
        case "allowed_tools":
            allowed = _child("tool_choice.allowed_tools", value.allowed_tools)
            out["tool_choice"] = {"type": "allowed_tools", "allowed_tools": allowed}
        case "raw_json":
            _parse("tool_choice.raw_json", value.raw_json, dict, str)
            out["tool_choice"] = jsontext.Raw(value.raw_json)


def _tools_json(_: Message, out: JsonObject, value: Any) -> None:
    for position, text in enumerate(value):
        _parse(f"tools_json[{position}]", text, dict)
    out["tools"] = [jsontext.Raw(text) for text in value]


def _function_call_choice(_: Message, out: JsonObject, value: chat_request_pb2.FunctionCallChoice) -> None:
    match value.WhichOneof("choice"):
        case "mode":
            out["function_call"] = value.mode
        case "name":
            out["function_call"] = {"name": value.name}


def _content_parts(_: Message, out: JsonObject, value: Any) -> None:
    out["content"] = _children("content_parts", value)


def _voice_id(_: Message, out: JsonObject, value: str) -> None:
    out["voice"] = {"id": value}


def _user_location(_: Message, out: JsonObject, value: chat_request_pb2.UserLocation) -> None:
    out["user_location"] = {"type": value.type or "approximate", "approximate": _child("user_location", value)}


def _moderation_mode(direction: str) -> _Writer:
    def write(_: Message, out: JsonObject, value: str) -> None:
        out.setdefault("policy", {})[direction] = {"mode": value}

    return write


def _message_audio(_: Message, out: JsonObject, value: chat_message_pb2.MessageAudio) -> None:
    out["audio"] = {"id": value.id}


_SPECIAL: dict[str, _Writer] = {
    "CreateChatCompletionRequest.stream": _nothing,
    "CreateChatCompletionRequest.stop": _stop,
    "CreateChatCompletionRequest.tool_choice": _tool_choice,
    "CreateChatCompletionRequest.function_call": _function_call_choice,
    "AllowedTools.tools_json": _tools_json,
    "AudioOptions.voice_id": _voice_id,
    "Prediction.content_parts": _content_parts,
    "WebSearchOptions.user_location": _user_location,
    "UserLocation.type": _nothing,
    "ModerationOptions.input_mode": _moderation_mode("input"),
    "ModerationOptions.output_mode": _moderation_mode("output"),
    "ChatMessage.content_parts": _content_parts,
    "ChatMessage.audio": _message_audio,
    "ChatMessage.annotations": _nothing,
}


# Finishers: changes to an object after its fields are written.


def _finish_message(message: chat_message_pb2.ChatMessage, _: JsonObject) -> None:
    if not message.role:
        raise InvalidRequest("role", "is empty; use a role such as user, system or assistant")


def _finish_function_call(message: chat_message_pb2.FunctionCall, out: JsonObject) -> None:
    # Upstreams require both keys; a call without arguments has "".
    out["name"] = message.name
    out["arguments"] = message.arguments


def _finish_custom_call(message: chat_message_pb2.CustomToolCall, out: JsonObject) -> None:
    out["name"] = message.name
    out["input"] = message.input


def _type_from(*fields: str, default: str = "") -> _Finisher:
    def finish(message: Message, out: JsonObject) -> None:
        if "type" not in out:
            name = next((field for field in fields if message.HasField(field)), default)
            if name:
                out["type"] = name

    return finish


_FINISH: dict[str, _Finisher] = {
    "ChatMessage": _finish_message,
    "FunctionCall": _finish_function_call,
    "CustomToolCall": _finish_custom_call,
    "ContentPart": _type_from("text", "image_url", "input_audio", "file", "refusal", "video_url", "audio_url"),
    "Tool": _type_from("function", "custom"),
    "ToolCall": _type_from("function", "custom"),
    "ResponseFormat": _type_from("json_schema"),
    "Prediction": _type_from(default="content"),
}


@cache
def _plan(kind: type[Message]) -> tuple[dict[int, _Writer], _Finisher | None]:
    """Return the writers of a message type by field number, and its finisher."""
    name = kind.DESCRIPTOR.name
    writers: dict[int, _Writer] = {}
    field: Any
    for field in kind.DESCRIPTOR.fields:
        writer = _SPECIAL.get(f"{name}.{field.name}") or _writer(field)
        if writer is not None:
            writers[field.number] = writer
    return writers, _FINISH.get(name)
