"""Parses the directives in a model name, such as `echo:status=429,times=2`, to the behaviour of echo.

The fields of `Behaviour` are the only table, for the parser and the help. Pure: `responses` and `server` execute the
behaviour.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import unquote

from chatrpc_echo.errors import ApiError

_PREFIX = "echo"
_Value = TypeVar("_Value")


def _integer(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"expected an integer from {least} to {most}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 86_400:
        raise ValueError("expected a number of seconds from 0 to 86400")
    return value


def _text(text: str) -> str:
    if not text:
        raise ValueError("expected a text")
    return unquote(text)


def _directive(default: _Value, parse: Callable[[str], Any] | None, description: str) -> _Value:
    return field(default=default, metadata={"parse": parse, "description": description})


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """The behaviour for one request. Chunk counts exclude the chunk that carries only the role."""

    status: int | None = _directive(
        None, _integer(400, 599), "=N: HTTP status 400-599 with OpenAI's usual error for it"
    )
    code: str | None = _directive(
        None,
        _text,
        "=CODE: error code, for status and error (digits become a number); alone it implies its usual status",
    )
    message: str | None = _directive(
        None, _text, "=TEXT: error message, for status, code and error (write %2C for a comma)"
    )
    retry_after: float | None = _directive(None, _seconds, "=SECONDS: retry-after header on the error")
    retry_after_ms: int | None = _directive(
        None, _integer(0, 86_400_000), "=MILLISECONDS: retry-after-ms header on the error"
    )
    times: int | None = _directive(
        None,
        _integer(0, 1_000_000),
        "=N: apply faults to the first N requests with this model string and user, then only pieces, size and pace",
    )
    delay: float = _directive(0.0, _seconds, "=SECONDS: pause before the headers")
    first: float = _directive(0.0, _seconds, "=SECONDS: pause between the headers and the first chunk (or the body)")
    pace: float | None = _directive(None, _seconds, "=SECONDS: pause before each chunk")
    gap: float = _directive(0.0, _seconds, "=SECONDS: one pause after the 2nd chunk")
    pieces: int | None = _directive(
        None, _integer(0, 1_000_000), "=N: the content is the numbers 1 to N, one per chunk"
    )
    size: int | None = _directive(
        None,
        _integer(0, 100_000_000),
        "=BYTES: length of the content, in one chunk or in the number of chunks that pieces requests",
    )
    truncate: int | None = _directive(
        None,
        _integer(0, 1_000_000),
        "=K: the stream ends after K chunks, without finish_reason and [DONE] (unary: half of the JSON)",
    )
    reset: int | None = _directive(
        None,
        _integer(0, 1_000_000),
        "=K: the connection is aborted after K chunks (unary: 0 is before the headers, else within the body)",
    )
    error: int | None = _directive(
        None,
        _integer(0, 1_000_000),
        "=K: an error object in the stream after K chunks; code selects it (unary: the error object with status 200)",
    )
    html: bool = _directive(False, None, ": an HTML page with status 200")
    no_usage: bool = _directive(False, None, ": no usage, even if requested")
    no_done: bool = _directive(False, None, ": the stream ends without [DONE]")
    reject_usage: bool = _directive(False, None, ": stream_options is rejected with status 400")

    @property
    def is_error(self) -> bool:
        """Whether the response has an error status."""
        return self.status is not None or (self.code is not None and self.error is None)

    @property
    def interruption(self) -> tuple[str, int] | None:
        """The interruption (`truncate`, `reset` or `error`) and the number of chunks before it, if any."""
        interruptions = {"truncate": self.truncate, "reset": self.reset, "error": self.error}
        given = [(name, after) for name, after in interruptions.items() if after is not None]
        return min(given, key=lambda interruption: interruption[1], default=None)

    @property
    def without_faults(self) -> "Behaviour":
        """The behaviour after `times` requests: the same content and pace, without faults."""
        return Behaviour(pieces=self.pieces, size=self.size, pace=self.pace)


DIRECTIVES: dict[str, str] = {each.name: each.metadata["description"] for each in fields(Behaviour)}
"""Name to description, which starts with the form of the value (`=N: …`), so `name + description` is a help line."""

_PARSERS: dict[str, Callable[[str], Any] | None] = {each.name: each.metadata["parse"] for each in fields(Behaviour)}


def behaviour_of(model: str) -> Behaviour | None:
    """Return the behaviour for `model`, or None if the name does not belong to echo.

    Raises ApiError (400), which names the directive, if one is unknown, invalid or given twice.
    """
    return _parsed(model) if model.startswith(_PREFIX) else None


@lru_cache(maxsize=1024)
def _parsed(model: str) -> Behaviour:
    values: dict[str, Any] = {}
    for item in filter(None, map(str.strip, model.partition(":")[2].split(","))):
        name, equals, text = item.partition("=")
        if name not in _PARSERS:
            raise _invalid_model(model, f"unknown directive '{name}'")
        if name in values:
            raise _invalid_model(model, f"directive '{name}' is given twice")
        values[name] = _value(model, name, text if equals else None)
    return Behaviour(**values)


def _value(model: str, name: str, text: str | None) -> Any:
    parse = _PARSERS[name]
    if parse is None:
        if text is not None:
            raise _invalid_model(model, f"directive '{name}' does not accept a value")
        return True
    try:
        return parse(text or "")
    except ValueError as error:
        raise _invalid_model(model, f"invalid value for directive '{name}': {error}, got '{text or ''}'") from error


def _invalid_model(model: str, problem: str) -> ApiError:
    valid = ", ".join(DIRECTIVES)
    return ApiError(
        400,
        f"Invalid model '{model}': {problem}. Valid directives: {valid}.",
        param="model",
        code="invalid_directive",
    )
