"""The table of codes beside HTTP statuses, in every spelling, and the words of messages."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc_server.core.backoff import is_transient
from chatrpc_server.core.errors import ErrorResponse, Reason
from chatrpc_server.core.openai import error_codes, error_words
from chatrpc_server.core.openai.error_codes import Meaning
from chatrpc_server.core.openai.error_responses import error_in_success, parse


def refusal(status: int, error: Any, headers: dict[str, str] | None = None) -> ErrorResponse:
    found = parse(status, headers or {}, json.dumps({"error": error}).encode(), 0.0)
    assert isinstance(found, ErrorResponse)
    return found


CODES = [
    # code, statuses beside which it decides the reason, reason, whether a retry can succeed
    ("context_length_exceeded", (400, 413, 500), "UPSTREAM_CONTEXT_LENGTH_EXCEEDED", False),
    ("exceed_context_size_error", (400, 500), "UPSTREAM_CONTEXT_LENGTH_EXCEEDED", False),
    ("data_inspection_failed", (400, 500), "UPSTREAM_CONTENT_FILTERED", False),
    ("content_filter", (403,), "UPSTREAM_MODERATED", False),
    ("1301", (400,), "UPSTREAM_CONTENT_FILTERED", False),
    ("insufficient_quota", (400, 403, 429, 503), "UPSTREAM_QUOTA_EXHAUSTED", False),
    ("exceeded_current_quota_error", (429, 403), "UPSTREAM_QUOTA_EXHAUSTED", False),
    ("insufficient_balance_error", (429,), "UPSTREAM_QUOTA_EXHAUSTED", False),
    ("billing_not_active", (429,), "UPSTREAM_QUOTA_EXHAUSTED", False),
    ("Arrearage", (400,), "UPSTREAM_QUOTA_EXHAUSTED", False),
    ("1113", (429, 400), "UPSTREAM_QUOTA_EXHAUSTED", False),
    ("insufficient_quota", (402,), "UPSTREAM_INSUFFICIENT_BALANCE", False),
    ("rate_limit_reached_error", (429, 400, 503), "UPSTREAM_RATE_LIMITED", True),
    ("rate_limit_exceeded", (413,), "UPSTREAM_REQUEST_TOO_LARGE", False),
    ("engine_overloaded_error", (429, 500, 503), "UPSTREAM_OVERLOADED", True),
    ("1305", (429,), "UPSTREAM_OVERLOADED", True),
    ("model_not_found", (400, 403, 404, 503), "UPSTREAM_MODEL_NOT_FOUND", False),
    ("1211", (400,), "UPSTREAM_MODEL_NOT_FOUND", False),
    ("API_KEY_INVALID", (400, 403), "UPSTREAM_UNAUTHENTICATED", False),
    ("insufficient_quota", (401,), "UPSTREAM_UNAUTHENTICATED", False),
    ("invalid_request_error", (422,), "UPSTREAM_UNPROCESSABLE", False),
    ("server_error", (400,), "UPSTREAM_INVALID_REQUEST", False),
]
ROWS = [(code, status, reason, passes) for code, statuses, reason, passes in CODES for status in statuses]
SPELLINGS = {
    "as written": lambda name: name,
    "capitals": lambda name: name.upper(),
    "hyphens": lambda name: name.replace("_", "-"),
    "words": lambda name: name.replace("_", " "),
    "one word": lambda name: "".join(part.capitalize() for part in name.split("_")),
    "AWS": lambda name: f"com.amazon#{name}",
}


@pytest.mark.parametrize(("code", "status", "reason", "passes"), ROWS, ids=[f"{row[0]} {row[1]}" for row in ROWS])
@pytest.mark.parametrize("key", ["code", "type", "status", "reason", "error_code"])
def test_code(code: str, status: int, reason: str, passes: bool, key: str) -> None:
    if code.isdecimal():
        key = "code"
    error = refusal(status, {"message": "m", key: code})
    assert (error.reason, is_transient(error)) == (Reason(reason), passes)
    within = error_in_success({"error": {"message": "m", key: code, "http_code": status}}, b"")
    assert within is not None
    assert (within.reason, within.status, is_transient(within)) == (Reason(reason), status, passes)


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("code", ["rate_limit_error", "context_length_exceeded", "insufficient_balance"])
def test_spelling(code: str, spell: Any) -> None:
    assert error_codes.of_name(spell(code)) is error_codes.of_name(code) is not None


def test_a_number_counts_only_at_its_place() -> None:
    assert error_codes.of_number("base_resp", 1002) is Meaning.RATE_LIMIT
    assert error_codes.of_number("", 1002) is Meaning.KEY
    assert error_codes.of_number("elsewhere", 1002) is None


def test_every_status_of_a_meaning_has_a_reason() -> None:
    assert {meaning.status for meaning in Meaning} <= error_codes.BY_STATUS.keys()


CONTEXT, FILTER, MONEY = Meaning.CONTEXT_LENGTH, Meaning.CONTENT_FILTER, Meaning.NO_MONEY
RATE, OVERLOAD, MODEL, KEY = Meaning.RATE_LIMIT, Meaning.OVERLOAD, Meaning.MODEL, Meaning.KEY
WORDS: list[tuple[int | None, str, Meaning | None]] = [
    # OpenAI, vLLM, SGLang, llama.cpp, LM Studio, TGI, Anthropic, Gemini, DashScope, Ollama, Groq, Bedrock, xAI, Mistral
    (400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens", CONTEXT),
    (400, "request (124315 tokens) exceeds the available context size (123904 tokens), try increasing it", CONTEXT),
    (400, "Requested token count exceeds the model's maximum context length of 32768 tokens.", CONTEXT),
    (500, "the request exceeds the available context size. try increasing the context size", CONTEXT),
    (400, "The number of tokens to keep from the initial prompt is greater than the context length.", CONTEXT),
    (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000", CONTEXT),
    (422, "Input validation error: `inputs` must have less than 1024 tokens. Given: 5000", CONTEXT),
    (400, "Input length (5000 tokens) exceeds the maximum allowed length (4091 tokens).", CONTEXT),
    (400, "prompt token count of 150000 exceeds the limit of 128000", CONTEXT),
    (400, "Unable to submit request because the input token count is 20 but the model supports up to 10", CONTEXT),
    (400, "Invalid request: Your request exceeded model token limit: 131072", CONTEXT),
    (400, "invalid params, context window exceeds limit (2013)", CONTEXT),
    (400, "Total tokens of image and text exceed max message tokens.", CONTEXT),
    (400, "input length and max_tokens exceed context limit: 188240 + 21333 > 204698", CONTEXT),
    (400, "too many tokens: total number of tokens in the prompt exceeds the limit of 4081", CONTEXT),
    (400, "The model is loaded with context length of only 4096 tokens", CONTEXT),
    (422, "Input validation error: inputs tokens + max_new_tokens must be <= 4096. Given: 5000", CONTEXT),
    (400, "prompt is too long: 210000 tokens > 200000 maximum", CONTEXT),
    (400, "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).", CONTEXT),
    (400, "Range of input length should be [1, 30720]", CONTEXT),
    (400, "Please reduce the length of the messages or completion.", CONTEXT),
    (400, "Input is too long for requested model.", CONTEXT),
    (400, "This model's maximum prompt length is 131072 but the request contains 537812 tokens.", CONTEXT),
    (400, "Prompt contains 40000 tokens, too large for model with 32768 maximum context length", CONTEXT),
    (400, "The decoder prompt (length 5000) is longer than the maximum model length of 4096.", CONTEXT),
    (429, "This model's maximum context length is 4096 tokens", None),
    (400, "Input data may contain inappropriate content.", FILTER),
    (400, "The response was filtered due to the prompt triggering Azure OpenAI's content management policy", FILTER),
    (400, "Content Exists Risk", FILTER),
    (400, "The request was rejected because it was considered high risk", FILTER),
    (400, "unsafe or sensitive content", FILTER),
    (403, "Your chosen model requires moderation and your input was flagged", FILTER),
    (403, "Content violates usage guidelines. Failed check: X", FILTER),
    (451, "The content you provided or machine outputted is blocked.", FILTER),
    (429, "You have exceeded today's quota for this model, please come back tomorrow", MONEY),
    (400, "You have reached your specified API usage limits.", MONEY),
    (429, "Your prepayment credits are depleted.", MONEY),
    (429, "You exceeded your current quota, please check your plan and billing details.", MONEY),
    (429, "Insufficient balance or no resource package. Please recharge.", MONEY),
    (400, "Your credit balance is too low to access the API.", MONEY),
    (403, "Sorry, your account balance is insufficient", MONEY),
    (400, "Access denied, please make sure your account is in good standing.", MONEY),
    (429, "Your account is not active, please check your billing details", MONEY),
    (400, "Budget has been exceeded! Current cost: 3, Max budget: 2", MONEY),
    (403, "您的账户余额不足", MONEY),
    (None, "Rate limit reached for model", RATE),
    (None, "You exceeded your current rate limit", RATE),
    (None, "Open api qps request limit reached", RATE),
    (503, "Too many requests, slow down", RATE),
    (400, "Rate limit reached for model", None),
    (503, "The model is currently overloaded. Please try again later.", OVERLOAD),
    (503, "The server is busy. Please try again later.", OVERLOAD),
    (500, "当前服务繁忙", OVERLOAD),
    (404, "The model `m` does not exist.", MODEL),
    (404, 'model "llama9:8b" not found, try pulling it first', MODEL),
    (404, "model llama-3.1-9b not found", MODEL),
    (400, "x is not a valid model ID", MODEL),
    (400, "Model Not Exist", MODEL),
    (400, "Invalid model: x", MODEL),
    (None, "Model not support", MODEL),
    (503, "当前分组 default 下对于模型 gpt-9 无可用渠道", MODEL),
    (404, "models/gemini-9 is not found for API version v1beta", MODEL),
    (404, "No endpoints found for a/b.", MODEL),
    (404, "No endpoints found that support tool use.", None),
    (404, "model: claude-9", MODEL),
    (400, "The requested model 'x' is not supported by any provider you have enabled.", MODEL),
    (404, "The page was not found", None),
    (400, "This model does not support tools", None),
    (400, "The model answered. The tool was not found", None),
    (400, "Incorrect API key provided", KEY),
    (400, "API key not valid. Please pass a valid API key.", KEY),
    (None, "Invalid API-key provided.", KEY),
    (None, "Service temporarily unavailable", Meaning.UNAVAILABLE),
    (418, "Rate limit reached", RATE),
    # Quotations of a request.
    (400, "Invalid value: 'You exceeded your current quota'", None),
    (400, 'messages.0.content: "insufficient balance" is not allowed', None),
    (None, "cannot parse `rate limit reached` in line 1", None),
    (None, "Unknown word “insufficient balance”", None),
    (None, "Unknown word 「余额不足」", None),
    (400, "it's wrong: 'the user's prompt is too long' is no role", None),
    (None, "the model's 'rate limit reached' isn't a tool", None),
    (None, "x" * 3000 + " rate limit reached", None),
    # Messages inside of JSON or of a Python dictionary.
    (400, "litellm.BadRequestError: Error code: 400 - {'error': {'message': \"This model's maximum context length is"
          " 10 tokens\", 'type': 'x', 'param': 'rate limit reached'}}", CONTEXT),
    (None, "Error: {'code': 5, 'message': 'Rate limit reached', 'x': 'y'}", RATE),
    (None, "Error: {'message': 'bad word \"rate limit reached\"', 'x': 'y'}", None),
    (None, 'upstream: {"error": "insufficient balance"}', MONEY),
]  # fmt: skip


@pytest.mark.parametrize(("status", "message", "meaning"), WORDS, ids=[f"{row[0]} {row[1][:60]}" for row in WORDS])
def test_words(status: int | None, message: str, meaning: Meaning | None) -> None:
    assert error_words.meaning(error_words.statement(message), status) is meaning


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("Error code: 429 - {'error': 'x'}", 429),
        ("Request failed with status code 503", 503),
        ("502 Bad Gateway", 502),
        ("HTTP 404: gone", 404),
        ("model with 500 tokens", None),
        ("5000 tokens", None),
        ("bad word 'HTTP 404: gone'", None),
        ("code 4290", None),
    ],
)
def test_http_status_in_words(message: str, status: int | None) -> None:
    assert error_words.http_status(error_words.statement(message)) == status


@given(st.text(alphabet="'\"`{}:,. \\amessage", max_size=300))
def test_any_message_has_a_statement(message: str) -> None:
    assert len(error_words.statement(message)) <= len(message) + 1


def test_the_inputs_of_a_validation_are_no_words() -> None:
    detail = [{"loc": ["body"], "msg": "bad", "input": "insufficient balance"}, {"msg": 5}, 7]
    error = parse(400, {}, json.dumps({"detail": detail}).encode(), 0.0)
    assert error.reason == Reason.UPSTREAM_INVALID_REQUEST


WAITS: dict[str, tuple[Any, float | None]] = {
    # error: seconds
    "Gemini": ({"details": [{"@type": "RetryInfo", "retryDelay": "34s"}]}, 34.0),
    "Gemini, a fraction": ({"details": [5, {}, {"retryDelay": "34.074824224s"}]}, 34.074824224),
    "OpenAI": ({"message": "Rate limit reached. Please try again in 1.5s. Visit x"}, 1.5),
    "OpenAI, milliseconds": ({"message": "Please try again in 20ms."}, 0.02),
    "OpenAI, minutes": ({"message": "Please try again in 6m0s."}, 360.0),
    "Groq": ({"message": "Please try again in 1m2.5s. Need more tokens?"}, 62.5),
    "hours": ({"message": "try again in 1h2m3s"}, 3723.0),
    "Azure": ({"message": "Please retry after 26 seconds."}, 26.0),
    "Azure, capital": ({"message": "Rate limit is exceeded. Try again in 6 seconds."}, 6.0),
    "words": ({"message": "please wait about 2 minutes and 5 seconds"}, 125.0),
    "days": ({"message": "try again in 1 day"}, 86400.0),
    "a number": ({"retry_after": 7}, 7.0),
    "digits": ({"retry_after": "7"}, 7.0),
    "Hugging Face": ({"message": "m", "estimated_time": 20.5}, 20.5),
    "OpenRouter": ({"message": "m", "metadata": {"headers": {"Retry-After": "9"}}}, 9.0),
    "negative": ({"retry_after": -7}, 0.0),
    "beyond every duration": ({"retry_after": 1e300}, 1e9),
    "NaN": ({"retry_after": "nan"}, None),
    "true": ({"retry_after": True}, None),
    "no duration": ({"retry_after": "soon"}, None),
    "no words": ({"message": "Please try again later"}, None),
    "a quotation": ({"message": "bad word 'try again in 5s'"}, None),
    "a list": ({"details": {"retryDelay": "5s"}}, None),
}


@pytest.mark.parametrize(("error", "seconds"), WAITS.values(), ids=WAITS)
def test_waiting_time(error: Any, seconds: float | None) -> None:
    assert refusal(429, error).retry_after_seconds == seconds
    assert refusal(503, error).retry_after_seconds == seconds
    assert refusal(429, error, {"retry-after": "3"}).retry_after_seconds == 3.0
    assert refusal(400, error).retry_after_seconds is None
    within = error_in_success({"error": {"code": 429, **error}}, b"")
    assert within is not None
    assert within.retry_after_seconds == seconds


def test_a_quota_with_a_waiting_time_is_a_rate() -> None:
    """Gemini calls a limit of a minute a quota, in the words of OpenAI about money."""
    words = "You exceeded your current quota, please check your plan and billing details."
    assert refusal(429, {"message": words}).reason == Reason.UPSTREAM_QUOTA_EXHAUSTED
    for error in ({"message": f"{words} Please retry in 2.5s."}, {"message": words, "retry_after": 3}):
        assert refusal(429, error).reason == Reason.UPSTREAM_RATE_LIMITED
    assert refusal(429, {"message": words, "status": "RESOURCE_EXHAUSTED"}).reason == Reason.UPSTREAM_RATE_LIMITED


@pytest.mark.parametrize(
    ("violations", "expected"),
    [([{"quotaId": "GenerateRequestsPerDayPerProject"}], False), ([{"quotaId": "PerMinute"}, 5], True), (5, True)],
)
def test_a_limit_of_a_day_is_not_retried(violations: Any, expected: bool) -> None:
    error = refusal(429, {"message": "m", "details": [{"violations": violations}, {"retryDelay": "2s"}]})
    assert (is_transient(error), error.retry_after_seconds) == (expected, 2.0)
    within = error_in_success({"error": {"code": 429, "details": [{"violations": violations}]}}, b"")
    assert within is not None
    assert is_transient(within) is expected
