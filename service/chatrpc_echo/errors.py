"""Error responses with OpenAI's format and texts: `{"error": {message, type, param, code}}`."""

from http import HTTPStatus
from typing import Any, NamedTuple

import orjson

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


class ApiError(Exception):
    """An error response: HTTP status, the four fields of the error object, and extra headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.fields: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
        self.headers = headers or {}

    @property
    def body(self) -> bytes:
        """The JSON body."""
        return orjson.dumps({"error": self.fields})


class _Template(NamedTuple):
    """A typical error of OpenAI. `{model}` in the message stands for the requested model."""

    status: int
    kind: str
    code: str | None
    message: str


_NO_MODEL = "The model `{model}` does not exist or you do not have access to it."
_BY_CODE = {
    template.code: template
    for template in (
        _Template(401, INVALID_REQUEST, "invalid_api_key", "Incorrect API key provided."),
        _Template(402, "billing_error", "insufficient_balance", "Insufficient balance."),
        _Template(
            403,
            "request_forbidden",
            "unsupported_country_region_territory",
            "Country, region, or territory not supported",
        ),
        _Template(404, INVALID_REQUEST, "model_not_found", _NO_MODEL),
        _Template(
            429,
            "requests",
            "rate_limit_exceeded",
            "Rate limit reached for `{model}` in organization org-echo on requests per min (RPM): "
            "Limit 3, Used 3, Requested 1.",
        ),
        _Template(
            429,
            "insufficient_quota",
            "insufficient_quota",
            "You exceeded your current quota, please check your plan and billing details.",
        ),
        _Template(
            400,
            INVALID_REQUEST,
            "context_length_exceeded",
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens. "
            "Please reduce the length of the messages.",
        ),
        _Template(
            400,
            INVALID_REQUEST,
            "content_filter",
            "The response was filtered due to the prompt triggering the content management policy.",
        ),
        _Template(500, SERVER_ERROR, SERVER_ERROR, "The server had an error while processing your request."),
    )
}
_BY_STATUS = {
    401: _BY_CODE["invalid_api_key"],
    402: _BY_CODE["insufficient_balance"],
    403: _BY_CODE["unsupported_country_region_territory"],
    404: _BY_CODE["model_not_found"],
    429: _BY_CODE["rate_limit_exceeded"],
    500: _Template(500, SERVER_ERROR, None, "The server had an error while processing your request. Sorry about that!"),
    503: _Template(503, SERVER_ERROR, None, "The engine is currently overloaded, please try again later."),
}


def openai_error(
    model: str,
    *,
    status: int | None = None,
    code: str | None = None,
    message: str | None = None,
    headers: dict[str, str] | None = None,
) -> ApiError:
    """Return OpenAI's error for this status, code, or both. Arguments override the typical values."""
    by_code = _BY_CODE.get(code)
    if status is None:
        status = by_code.status if by_code else 400
    by_status = _BY_STATUS.get(status) or _generic(status)
    # A code keeps its text even with an unusual status, as at some providers.
    kind, text = (by_code or by_status).kind, (by_code or by_status).message
    return ApiError(
        status,
        message or text.replace("{model}", model),
        kind=kind,
        # Some providers send the HTTP status here, as a number.
        code=int(code) if code and code.isdecimal() else code or by_status.code,
        headers=headers,
    )


def _generic(status: int) -> _Template:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = f"Status {status}"
    return _Template(status, SERVER_ERROR if status >= 500 else INVALID_REQUEST, None, f"{phrase}.")


def unknown_model(model: str) -> ApiError:
    """Return the error for a model name that does not begin with `echo`."""
    return openai_error(model, code="model_not_found")


def unknown_url(method: str, path: str) -> ApiError:
    """Return the error for an unknown route."""
    return ApiError(404, f"Invalid URL ({method} {path})", code="unknown_url")


def rejected_key(key: str | None) -> ApiError:
    """Return the error for a bearer token that is missing (None) or wrong."""
    if not key:
        message = (
            "You didn't provide an API key. You need to provide your API key in an Authorization header "
            "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
    else:
        message = f"Incorrect API key provided: {mask(key)}."
    return ApiError(401, message, code="invalid_api_key")


def mask(key: str) -> str:
    """Mask the key as OpenAI does: its ends and stars. Short keys become stars only."""
    # The header can hold any bytes, JSON cannot.
    key = key.encode("ascii", "replace").decode("ascii")
    if len(key) <= 12:
        return "*" * len(key)
    return f"{key[:4]}{'*' * min(len(key) - 8, 24)}{key[-4:]}"
