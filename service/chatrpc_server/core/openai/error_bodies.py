"""Finds the error in a JSON value, wherever its provider writes it.

Providers agree on no shape: an object, a text or a list under `error`; a flat object with `code` and `message`;
`detail` of FastAPI; `base_resp` of MiniMax; `errors` of Cloudflare; `error_code` of Baidu; `__type` of AWS; Gemini's
list of one. Others wrap another provider's error: `metadata.raw` of OpenRouter, or JSON as the text of a message.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from chatrpc_server.core.openai import error_codes, error_words, jsontext
from chatrpc_server.core.openai.error_codes import Meaning

_MESSAGES = (
    *("message", "msg", "error_msg", "error_message", "errorMessage", "errmsg", "status_msg", "Message"),
    *("detail", "error_description", "description", "title"),
)
_CODES = ("code", "error_code", "errorCode", "err_code", "errcode", "Code", "status_code")
_TYPES = ("type", "error_type", "__type")
_NAMES = (*_CODES, *_TYPES, "status", "reason")
"""Keys whose texts can be names of the table."""
_STATUSES = ("code", "http_code", "http_status", "httpStatus", "status", "status_code", "statusCode", "error_code")
"""Keys that can hold an HTTP status."""
_WAITS = ("retryDelay", "retry_after", "retryAfter", "retry_after_seconds", "resets_in_seconds", "estimated_time")
"""Keys that can hold a time to wait: of Gemini, gateways, OpenAI's plans, Hugging Face."""
_WRAPPERS = ("Response", "ResponseMetadata", "header")
"""Keys of Tencent, Volcengine and iFlytek around `Error`, or around `code` and `message`."""
_NOTHING = ("", "0", "none", "null", "ok", "success", "succeeded", "successful")
_MAX_DEPTH = 3
"""Most errors inside of errors."""
_MAX_DETAILS = 32


@dataclass
class FoundError:
    """An error as its provider describes it."""

    message: str = ""
    type: str = ""
    param: str = ""
    code: str = ""
    request_id: str = ""
    status: int | None = None
    """The HTTP status that it names."""
    names: list[str] = field(default_factory=list)
    numbers: list[tuple[str, int]] = field(default_factory=list)
    """Its numbers, each with the key that holds it."""
    texts: list[str] = field(default_factory=list)
    waiting_seconds: float | None = None
    is_daily: bool = False
    """Whether it is a limit of a day, so that the waiting time of the same error is too short (Gemini)."""

    def meaning(self, status: int | None) -> Meaning | None:
        """Return the meaning beside this HTTP status: first by codes, then by words. General codes come last."""
        by_codes = [error_codes.of_name(name) for name in self.names]
        by_codes += [error_codes.of_number(place, number) for place, number in self.numbers]
        known = [meaning for meaning in by_codes if meaning]
        statements = [error_words.statement(text) for text in self.texts]
        by_words = [error_words.meaning(text, status) for text in statements]
        if self.wait() is not None:  # a rate, which Gemini calls a quota
            by_words = [Meaning.RATE_LIMIT if meaning is Meaning.NO_MONEY else meaning for meaning in by_words]
        known += [meaning for meaning in by_words if meaning]
        return next((meaning for meaning in known if meaning.reason), known[0] if known else None)

    def status_in_words(self) -> int | None:
        """Return the HTTP status that the message names."""
        statuses = (error_words.http_status(error_words.statement(text)) for text in self.texts)
        return next((status for status in statuses if status), None)

    def wait(self) -> float | None:
        """Return the time to wait in seconds that the error names."""
        if self.waiting_seconds is not None:
            return self.waiting_seconds
        waits = (error_words.waiting_seconds(error_words.statement(text)) for text in self.texts)
        return next((wait for wait in waits if wait is not None), None)


def of_status(source: Any) -> FoundError:
    """Return the error of a response whose HTTP status is one. `source` is its JSON or its text."""
    return _read(*(_holder(source) or _whole(source)))


def of_success(source: Any, *, certain: bool = False, is_whole: bool = False) -> FoundError | None:
    """Return the error in JSON of a response with a status of success, or None if it has no error.

    `certain`: JSON of any shape is an error, because it comes from an `error` event. `is_whole`: it is no event of a
    stream, so that a message without choices is an error.
    """
    found = _holder(source)
    if certain:
        return _read(*(found or _whole(source)))
    has_choices = isinstance(source, dict) and isinstance(source.get("choices"), list)
    if found is not None:
        return None if has_choices and says_nothing(found[1]) else _read(*found)
    if not isinstance(source, dict) or (has_choices and source["choices"]):
        return None
    if _is_flat_error(source) or (is_whole and not has_choices and any(_text(source.get(key)) for key in _MESSAGES)):
        return _read(*_whole(source))
    return None


def says_nothing(error: Any, depth: int = 0) -> bool:
    """Return whether an error is none: empty, or with a code of success."""
    if isinstance(error, dict | list):
        values = error.values() if isinstance(error, dict) else error
        return depth < _MAX_DEPTH and all(says_nothing(value, depth + 1) for value in values)
    if isinstance(error, str):
        return error.strip().lower() in _NOTHING or _is_success(error)
    return not error or (error is not True and _is_success(error))


def _holder(source: Any) -> tuple[str, Any, dict[str, Any]] | None:
    """Return the key of the error, the error, and the object around it; or None if no key says that it is one."""
    if isinstance(source, list):
        holders = (item for item in source[:1] if isinstance(item, dict) and item.get("error"))
        source = next(holders, None)
    if not isinstance(source, dict):
        return None
    error = source.get("error")
    if isinstance(error, dict) or error:
        return "", error, source
    if source.get("choices"):
        return None  # what these keys say beside a completion is in its extras
    response = source.get("base_resp")
    if isinstance(response, dict) and not says_nothing(response.get("status_code")):
        return "base_resp", response, source
    if source.get("errors"):
        return "errors", source["errors"], source
    for wrapper in (source.get(key) for key in _WRAPPERS):
        if isinstance(wrapper, dict):
            inner = wrapper.get("Error")
            if isinstance(inner, dict):
                return "", inner, {}
            if _is_flat_error(wrapper):
                return "", wrapper, {}
    return None


def _whole(source: Any) -> tuple[str, Any, dict[str, Any]]:
    if isinstance(source, list):
        source = next((item for item in source if isinstance(item, dict | str)), None)
    return "", source, {}


def _is_flat_error(source: dict[str, Any]) -> bool:
    """Return whether an object without choices says that it is an error."""
    if "error" in (source.get("object"), source.get("type")) or source.get("success") is False:
        return True
    if not any(_text(source.get(key)) for key in _MESSAGES):
        return False
    codes = [source.get(key) for key in (*_CODES, "__type") if key in source]
    has_failed = _status(source) is not None or source.get("status") in ("error", "fail", "failed")
    return has_failed or any(not says_nothing(code) for code in codes)


def _read(place: str, error: Any, around: dict[str, Any]) -> FoundError:
    found = FoundError()
    if isinstance(error, list):
        error = next((item for item in error if isinstance(item, dict | str) and item), None)
    if isinstance(error, str):
        error, around = {**around, "error": None, "message": error}, {}
    elif not isinstance(error, dict):
        error = {**around, "error": None}
    _add(found, place, error, 0)
    if around:
        _add_keys(found, "", {key: around[key] for key in around if key not in ("id", "error", "errors", "message")})
        found.request_id = found.request_id or _text(around.get("request_id"))
    return found


def _add(found: FoundError, place: str, error: dict[str, Any], depth: int) -> None:
    """Add what an error object says, and then the errors inside of it."""
    message = next((text for key in _MESSAGES if (text := _text(error.get(key)))), "")
    if not found.message:
        found.message = message
    elif message and message not in found.message:
        found.message = f"{found.message}: {message}"
    found.param = found.param or _text(error.get("param"))
    found.code = found.code or next((text for key in _CODES if (text := _text(error.get(key)))), "")
    found.type = found.type or next((text for key in _TYPES if (text := _text(error.get(key)))), "")
    found.request_id = found.request_id or _text(error.get("request_id"))
    found.texts += _statements(error)
    _add_keys(found, place, error)
    if depth < _MAX_DEPTH:
        for inner in _inner(error):
            _add(found, place, inner, depth + 1)


def _add_keys(found: FoundError, place: str, error: dict[str, Any]) -> None:
    """Add the codes, the HTTP status and the waiting time of an object."""
    for key in _NAMES:
        value = error.get(key)
        number = _number(value)
        if number is not None:
            found.numbers.append(
                ("status" if key == "status" else place or ("error_code" if key == "error_code" else ""), number)
            )
        elif isinstance(value, str):
            found.names.append(value)
    if found.status is None:
        found.status = _status(error)
    for holder in (error, *_details(error)):
        if found.waiting_seconds is None:
            found.waiting_seconds = next((wait for key in _WAITS if (wait := _wait(holder.get(key))) is not None), None)
        if isinstance(holder.get("reason"), str):
            found.names.append(holder["reason"])
        violations = holder.get("violations")
        if isinstance(violations, list):
            found.is_daily |= any(
                "PerDay" in _text(item.get("quotaId")) for item in violations[:_MAX_DETAILS] if isinstance(item, dict)
            )


def _details(error: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the details of a google.rpc.Status."""
    details = error.get("details")
    if isinstance(details, list):
        yield from (detail for detail in details[:_MAX_DETAILS] if isinstance(detail, dict))


def _inner(error: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the errors that an error contains: another provider's, or the more exact one of Azure."""
    metadata = error.get("metadata")
    values = [error.get("innererror"), error.get("detail"), error.get("message")]
    if isinstance(metadata, dict):
        values.append(metadata.get("raw"))
        if isinstance(metadata.get("headers"), dict):
            yield {"retry_after": metadata["headers"].get("Retry-After")}
    for value in values:
        is_raw = isinstance(metadata, dict) and value is metadata.get("raw")
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            try:
                value = jsontext.loads_leniently(value.encode("utf-8", "replace"))
            except ValueError:
                continue
        holder = _holder(value)
        if holder is not None and isinstance(holder[1], dict):
            yield holder[1]
        elif holder is not None and isinstance(holder[1], str):
            yield {**holder[2], "message": holder[1]}
        elif isinstance(value, dict):
            yield value
        elif is_raw and isinstance(value, str):
            yield {"message": value}


def _statements(error: dict[str, Any]) -> Iterator[str]:
    """Yield the texts whose words can state the error. Those of a list are only the `msg` of its items (FastAPI)."""
    for key in _MESSAGES:
        value = error.get(key)
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (
                item["msg"]
                for item in value[:_MAX_DETAILS]
                if isinstance(item, dict) and isinstance(item.get("msg"), str)
            )


def _status(error: dict[str, Any]) -> int | None:
    numbers = (_number(error.get(key)) for key in _STATUSES)
    return next((number for number in numbers if number is not None and 400 <= number < 600), None)


def _number(value: Any) -> int | None:
    """Return an integer from a number or its digits."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > 1e9:
        return None
    return int(value) if value == int(value) else None


def _is_success(code: Any) -> bool:
    number = _number(code)
    return number is not None and (number == 0 or 200 <= number < 300)


def _wait(value: Any) -> float | None:
    """Return the seconds of a number, of its digits, or of a duration such as `34s`."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return error_words.duration(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value == value else None


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float) and _number(value) is not None:
        value = int(value)
    try:
        return jsontext.dumps(value).decode()
    except ValueError:
        return ""
