"""Validates the top level of a request, and rejects it with OpenAI's error 400.

It checks types, and the ranges that OpenAI documents. `tools` and `completions` check the nested schemas.
"""

from typing import Any, NamedTuple

import orjson

from chatrpc_echo.errors import ApiError

ROLES = ("system", "assistant", "user", "function", "tool", "developer")


class _Kind(NamedTuple):
    """One or more JSON types, and OpenAI's name for them."""

    types: tuple[type, ...]
    name: str


_STRING = _Kind((str,), "a string")
_BOOLEAN = _Kind((bool,), "a boolean")
_INTEGER = _Kind((int,), "an integer")
_NUMBER = _Kind((int, float), "a decimal")
_ARRAY = _Kind((list,), "an array")
_OBJECT = _Kind((dict,), "an object")
_TYPE_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    list: "an array",
    dict: "an object",
}

_KINDS = {
    "model": _STRING,
    "messages": _ARRAY,
    "n": _INTEGER,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "max_tokens": _INTEGER,
    "max_completion_tokens": _INTEGER,
    "top_logprobs": _INTEGER,
    "seed": _INTEGER,
    "user": _STRING,
    "stop": _Kind((str, list), "a string or an array of strings"),
    "stream": _BOOLEAN,
    "stream_options": _OBJECT,
    "logprobs": _BOOLEAN,
    "tools": _ARRAY,
    "functions": _ARRAY,
    "tool_choice": _Kind((str, dict), "a string or an object"),
    "function_call": _Kind((str, dict), "a string or an object"),
    "parallel_tool_calls": _BOOLEAN,
    "response_format": _OBJECT,
    "metadata": _OBJECT,
}
_RANGES: dict[str, tuple[float, float | None]] = {
    "n": (1, 128),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "max_tokens": (1, None),
    "max_completion_tokens": (1, None),
    "top_logprobs": (0, 20),
}
_MOST_STOPS = 4


def validate(raw: bytes) -> dict[str, Any]:
    """Parse and validate the request. Omit null fields, because OpenAI treats them as absent.

    Raises ApiError (400).
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(
            400,
            "We could not parse the JSON body of your request. The OpenAI API expects a JSON payload, "
            "but what was sent was not valid JSON.",
        ) from error
    _require(body, _OBJECT, "request body")
    body = {name: value for name, value in body.items() if value is not None}
    for name in ("model", "messages"):
        if name not in body:
            raise missing(name)
    for name, kind in _KINDS.items():
        if name in body:
            _require(body[name], kind, name)
    for name, (least, most) in _RANGES.items():
        if name in body:
            _require_range(body[name], name, least, most)
    _require_messages(body["messages"])
    _require_stops(body.get("stop"))
    if "top_logprobs" in body and not body.get("logprobs"):
        raise ApiError(
            400, "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", param="top_logprobs"
        )
    return body


def missing(name: str) -> ApiError:
    """Return the error for a missing required field."""
    return ApiError(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def require_object(value: Any, name: str) -> dict[str, Any]:
    """Return `value` if it is a JSON object.

    Raises ApiError (400), which names the field `name`.
    """
    _require(value, _OBJECT, name)
    assert isinstance(value, dict)
    return value


def _require(value: Any, kind: _Kind, name: str) -> None:
    """Raise ApiError (400) unless `value` is of that kind."""
    # Compare exact types, because bool is an int in Python but not in JSON.
    if type(value) not in kind.types:
        found = "null" if value is None else _TYPE_NAMES[type(value)]
        raise ApiError(
            400,
            f"Invalid type for '{name}': expected {kind.name}, but got {found} instead.",
            param=name,
            code="invalid_type",
        )


def _require_range(value: float, name: str, least: float, most: float | None) -> None:
    kind = _KINDS[name].name.split()[-1]
    if value < least:
        relation, bound, code = ">=", least, "below_min_value"
    elif most is not None and value > most:
        relation, bound, code = "<=", most, "above_max_value"
    else:
        return
    side = code.replace("_", " ").replace("min", "minimum").replace("max", "maximum")
    raise ApiError(
        400,
        f"Invalid '{name}': {kind} {side}. Expected a value {relation} {bound}, but got {value} instead.",
        param=name,
        code=f"{kind}_{code}",
    )


def _require_messages(messages: list[Any]) -> None:
    if not messages:
        raise ApiError(
            400,
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            param="messages",
            code="empty_array",
        )
    for index, message in enumerate(messages):
        _require(message, _OBJECT, f"messages[{index}]")
        role = message.get("role")
        if role is None:
            raise missing(f"messages[{index}].role")
        if role not in ROLES:
            raise ApiError(400, f"{role!r} is not one of {list(ROLES)} - 'messages.{index}.role'")
        _require_content(
            message.get("content"), f"messages[{index}].content", needed=role in ("system", "developer", "user", "tool")
        )


def _require_content(content: Any, name: str, *, needed: bool) -> None:
    if content is None:
        if needed:
            raise ApiError(400, "Invalid value for 'content': expected a string, got null.", param=name)
        return
    _require(content, _Kind((str, list), "one of a string or array of objects"), name)
    if isinstance(content, list):
        for index, part in enumerate(content):
            _require(part, _OBJECT, f"{name}[{index}]")
            if part.get("type") is None:
                raise missing(f"{name}[{index}].type")


def _require_stops(stop: Any) -> None:
    if not isinstance(stop, list):
        return
    if len(stop) > _MOST_STOPS:
        raise ApiError(
            400,
            f"Invalid 'stop': array too long. Expected an array with maximum length {_MOST_STOPS}, "
            f"but got an array with length {len(stop)} instead.",
            param="stop",
            code="array_above_max_length",
        )
    for index, each in enumerate(stop):
        _require(each, _STRING, f"stop[{index}]")
