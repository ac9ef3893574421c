"""The table of the upstreams' error codes, with their sources. The words of a message are the fallback.

A code is a name (`rate_limit_error`) or a number. Names mean the same at all providers, regardless of capitals and
separators. Numbers differ, so a number counts only at the place where its provider writes it.
"""

import re
from enum import Enum

from chatrpc_server.core.errors import Reason

BY_STATUS = {
    400: Reason.UPSTREAM_INVALID_REQUEST,
    401: Reason.UPSTREAM_UNAUTHENTICATED,
    402: Reason.UPSTREAM_INSUFFICIENT_BALANCE,
    403: Reason.UPSTREAM_FORBIDDEN,
    404: Reason.UPSTREAM_NOT_FOUND,
    405: Reason.UPSTREAM_UNIMPLEMENTED,
    408: Reason.UPSTREAM_TIMEOUT,
    409: Reason.UPSTREAM_CONFLICT,
    413: Reason.UPSTREAM_REQUEST_TOO_LARGE,
    415: Reason.UPSTREAM_UNPROCESSABLE,
    422: Reason.UPSTREAM_UNPROCESSABLE,
    425: Reason.UPSTREAM_UNAVAILABLE,
    429: Reason.UPSTREAM_RATE_LIMITED,
    498: Reason.UPSTREAM_OVERLOADED,  # Groq, "API Error Codes": the flex tier is at its capacity
    499: Reason.UPSTREAM_UNAVAILABLE,  # Gemini, "API troubleshooting": CANCELLED by the server's side
    500: Reason.UPSTREAM_INTERNAL,
    501: Reason.UPSTREAM_UNIMPLEMENTED,
    502: Reason.UPSTREAM_UNAVAILABLE,
    503: Reason.UPSTREAM_UNAVAILABLE,
    504: Reason.UPSTREAM_TIMEOUT,
    520: Reason.UPSTREAM_UNAVAILABLE,
    521: Reason.UPSTREAM_UNAVAILABLE,
    522: Reason.UPSTREAM_UNAVAILABLE,
    523: Reason.UPSTREAM_UNAVAILABLE,
    524: Reason.UPSTREAM_TIMEOUT,
    529: Reason.UPSTREAM_OVERLOADED,
}


class Meaning(Enum):
    """The meaning of a code: the HTTP status that it stands for, and whether it says more than that status."""

    CONTEXT_LENGTH = (400, Reason.UPSTREAM_CONTEXT_LENGTH_EXCEEDED)
    CONTENT_FILTER = (400, Reason.UPSTREAM_CONTENT_FILTERED)
    MODERATION = (403, Reason.UPSTREAM_CONTENT_FILTERED)
    NO_MONEY = (429, Reason.UPSTREAM_QUOTA_EXHAUSTED)
    RATE_LIMIT = (429, Reason.UPSTREAM_RATE_LIMITED)
    OVERLOAD = (503, Reason.UPSTREAM_OVERLOADED)
    MODEL = (404, Reason.UPSTREAM_MODEL_NOT_FOUND)
    KEY = (401, Reason.UPSTREAM_UNAUTHENTICATED)
    INVALID = (400, None)
    FORBIDDEN = (403, None)
    NOT_FOUND = (404, None)
    CONFLICT = (409, None)
    TOO_LARGE = (413, None)
    CANCELLED = (499, None)
    INTERNAL = (500, None)
    UNIMPLEMENTED = (501, None)
    UNAVAILABLE = (503, None)
    TIMEOUT = (504, None)

    def __init__(self, status: int, reason: Reason | None) -> None:
        self.status = status
        self.reason = reason


# Sources, by the titles of the public documents. OpenAI: "Error codes". Azure: "Content filtering", "Foundry Models
# quotas". Anthropic: "Errors". Gemini: "API troubleshooting"; google.rpc.Code, google.api.ErrorReason. Bedrock:
# "Converse", section Errors. Groq: "API Error Codes". Mistral: "Error codes". DeepSeek: "Error Codes". Moonshot: "Error
# codes". MiniMax: "Error Codes". DashScope: "Error messages" (Model Studio). Volcengine: "Error codes" (Ark). Novita,
# PPIO: "Error codes". Cloudflare: "Errors" (Workers AI). Watsonx: "API errors". UCloud: "Error codes" (ModelVerse).
# Databricks: "Error codes". Servers by their sources: llama.cpp tools/server, vLLM entrypoints, SGLang, TGI router,
# LiteLLM exceptions.py, one-api and new-api relay, OpenRouter: "Errors and Debugging".
_NAMES = {
    Meaning.CONTEXT_LENGTH: (
        "context_length_exceeded string_above_max_length"  # OpenAI
        " exceed_context_size_error"  # llama.cpp
        " context_window_exceeded ContextWindowExceededError"  # LiteLLM
        " model_context_window_exceeded prompt_too_long"  # Anthropic; vLLM's and LiteLLM's proxies
        " tokens_too_long too_many_prompt_tokens"  # UCloud, Perplexity
        " model_max_prompt_tokens_exceeded"  # Copilot
        " context_length_exceeded_error input_too_long max_tokens_exceeded"  # gateways
    ),
    Meaning.CONTENT_FILTER: (
        "content_filter content_policy_violation ResponsibleAIPolicyViolation"  # OpenAI, Azure
        " ContentPolicyViolationError"  # LiteLLM
        " data_inspection_failed DataInspectionFailed"  # DashScope
        " SensitiveContentDetected InputTextSensitiveContentDetected OutputTextSensitiveContentDetected"  # Volcengine
        " input_sensitive_error output_sensitive_error"  # MiniMax
        " invalid_messages sensitive_check_error"  # UCloud
        " content_filtered sensitive_words_detected prompt_blocked"  # gateways, new-api
        " safety prohibited_content"  # Gemini
        " censorship_blocked"  # StepFun
    ),
    Meaning.MODERATION: "moderation moderation_blocked guardrail_intervened",  # OpenRouter, OpenAI, Bedrock
    Meaning.NO_MONEY: (
        "insufficient_quota billing_hard_limit_reached billing_not_active"  # OpenAI
        " billing_error"  # Anthropic
        " exceeded_current_quota_error"  # Moonshot
        " insufficient_balance_error insufficient_balance usage_limit_exceeded"  # MiniMax
        " Arrearage PrepaidBillOverdue PostpaidBillOverdue CommodityNotPurchased"  # DashScope
        " AllocationQuota.FreeTierOnly FreeTierOnly"  # DashScope
        " AccountOverdueError AccountOverdue SetLimitExceeded"  # Volcengine
        " NOT_ENOUGH_BALANCE"  # Novita, PPIO
        " insufficient_user_quota pre_consume_token_quota_failed token_quota_exhausted"  # one-api, new-api
        " budget_exceeded BudgetExceededError"  # LiteLLM
        " blocked_api_access"  # Groq: a spend limit
        " insufficient_credits payment_required credits_exhausted CreditsError"  # gateways
        " usage_limit_reached ServiceQuotaExceededException"  # OpenAI's plans, Bedrock
        " billing_disabled"  # google.api.ErrorReason
    ),
    Meaning.RATE_LIMIT: (
        "rate_limit_exceeded rate_limit_error rate_limited RateLimitError"  # OpenAI, Anthropic, Mistral, vLLM, LiteLLM
        " rate_limit_reached_error"  # Moonshot
        " too_many_requests TooManyRequests too_many_requests_error"  # many
        " resource_exhausted"  # google.rpc.Code
        " ThrottlingException TooManyRequestsException Throttling Throttling.RateQuota Throttling.BurstRate"
        " Throttling.AllocationQuota limit_requests limit_burst_rate"  # Bedrock, DashScope
        " RateLimitExceeded.EndpointRPMExceeded RateLimitExceeded.EndpointTPMExceeded ModelAccountRpmRateLimitExceeded"
        " ModelAccountTpmRateLimitExceeded ModelAccountIpmRateLimitExceeded QuotaExceeded"  # Volcengine
        " REQUEST_LIMIT_EXCEEDED"  # Databricks
        " consumption_limit_reached"  # Watsonx
        " rate_limit concurrency_limit_exceeded"  # gateways
    ),
    Meaning.OVERLOAD: (
        "overloaded overloaded_error server_overloaded server_is_overloaded slow_down"  # Anthropic, OpenAI
        " engine_overloaded engine_overloaded_error"  # OpenAI, Moonshot
        " ServerOverloaded"  # Volcengine
        " capacity_exceeded over_capacity service_tier_capacity_exceeded"  # Groq, Mistral
        " ModelNotReadyException model_overloaded"  # Bedrock, gateways
        " system_busy server_busy ModelServingError"  # DeepSeek, DashScope
    ),
    Meaning.MODEL: (
        "model_not_found invalid_model unknown_model unsupported_model"  # OpenAI, Mistral, gateways
        " DeploymentNotFound"  # Azure
        " ModelNotFound model_not_exist model_not_supported ModelNotSupported"  # DashScope, Watsonx, Copilot
        " model_not_available model_decommissioned"  # Together, Groq
        " InvalidEndpointOrModel.NotFound InvalidEndpointOrModel ModelNotOpen"  # Volcengine
        " model_not_found_error no_available_channel"  # gateways, one-api
    ),
    Meaning.KEY: (
        "invalid_api_key invalid_key InvalidApiKey authentication_error AuthenticationError authentication_failed"
        " invalid_authentication_error incorrect_api_key_error"  # OpenAI, DashScope, Anthropic, Moonshot
        " authorized_error"  # MiniMax
        " unauthenticated API_KEY_INVALID"  # google.rpc.Code, google.api.ErrorReason
        " UnrecognizedClientException InvalidSignatureException ExpiredTokenException"  # Bedrock
        " auth_error unauthorized"  # UCloud, many
    ),
    Meaning.INVALID: (
        "invalid_request_error invalid_request BadRequestError bad_request invalid_argument validation_error"
        " failed_precondition out_of_range invalid_parameter invalid_parameter_error InvalidParameterValue"
        " ValidationException bad_request_error invalid_value unsupported_parameter tool_use_failed"
        " json_validate_failed unsupported_country_region_territory unsupported_value missing_required_parameter"
    ),
    Meaning.FORBIDDEN: (
        "permission_error permission_denied forbidden access_denied AccessDeniedException PermissionDeniedError"
    ),
    Meaning.NOT_FOUND: "not_found_error not_found NotFoundError ResourceNotFoundException resource_not_found_error",
    Meaning.CONFLICT: "conflict conflict_error aborted already_exists",
    Meaning.TOO_LARGE: "request_too_large payload_too_large",
    Meaning.CANCELLED: "cancelled canceled",
    Meaning.INTERNAL: (
        "server_error api_error internal_error internal InternalServerError internal_server_error"
        " InternalServerException data_loss unknown ModelErrorException ModelStreamErrorException server_internal_error"
    ),
    Meaning.UNIMPLEMENTED: "unimplemented not_implemented not_supported_error",
    Meaning.UNAVAILABLE: (
        "service_unavailable unavailable unavailable_error ServiceUnavailableException service_unavailable_error"
        " ServiceUnavailableError bad_gateway temporarily_unavailable upstream_error"
    ),
    Meaning.TIMEOUT: "timeout timeout_error deadline_exceeded gateway_timeout ModelTimeoutException RequestTimeOut",
}


def _plain(name: str) -> str:
    return re.sub(r"[^0-9a-z]", "", name.lower())


_BY_NAME = {_plain(name): meaning for meaning, names in _NAMES.items() for name in names.split()}

_MAX_NAME = 128
_BY_NUMBER: dict[str, dict[int, Meaning]] = {
    # Z.ai and Zhipu: "Errors". From 10,000 on: SiliconFlow: "Error handling"; iFlytek Spark: "Error codes".
    "": {
        **dict.fromkeys((1000, 1001, 1002, 1003, 1004, 1110, 1111, 1112, 1121), Meaning.KEY),
        **dict.fromkeys((1113, 1309, 1310), Meaning.NO_MONEY),
        **dict.fromkeys((1211, 20012), Meaning.MODEL),
        **dict.fromkeys((1220, 1221, 1222), Meaning.FORBIDDEN),
        **dict.fromkeys((1200, 1230, 1234), Meaning.INTERNAL),
        **dict.fromkeys((1210, 1212, 1213, 1214, 1215, 20015), Meaning.INVALID),
        **dict.fromkeys((1261, 10907), Meaning.CONTEXT_LENGTH),
        **dict.fromkeys((1300, 1301, 10013, 10014, 10019), Meaning.CONTENT_FILTER),
        **dict.fromkeys((1302, 1303, 1304, 1308, 10007, 11202, 11203), Meaning.RATE_LIMIT),
        **dict.fromkeys((1305, 1312, 50505, 50508), Meaning.OVERLOAD),
        **dict.fromkeys((30001, 11201), Meaning.NO_MONEY),
    },
    # MiniMax: "Error Codes".
    "base_resp": {
        1000: Meaning.INTERNAL,
        1001: Meaning.TIMEOUT,
        1002: Meaning.RATE_LIMIT,
        1004: Meaning.KEY,
        1008: Meaning.NO_MONEY,
        1013: Meaning.INTERNAL,
        1024: Meaning.INTERNAL,
        1026: Meaning.CONTENT_FILTER,
        1027: Meaning.CONTENT_FILTER,
        1033: Meaning.INTERNAL,
        1039: Meaning.RATE_LIMIT,  # tokens per minute
        1041: Meaning.RATE_LIMIT,  # connections
        2013: Meaning.INVALID,
        2045: Meaning.RATE_LIMIT,
        2049: Meaning.KEY,
        2056: Meaning.NO_MONEY,
    },
    # Baidu Qianfan: "Error codes".
    "error_code": {
        **dict.fromkeys((4, 18, 336501, 336502), Meaning.RATE_LIMIT),
        **dict.fromkeys((17, 19), Meaning.NO_MONEY),  # the limits of a day and in total
        6: Meaning.FORBIDDEN,
        **dict.fromkeys((13, 14, 15, 100, 110, 111), Meaning.KEY),
        336007: Meaning.CONTEXT_LENGTH,
        336100: Meaning.OVERLOAD,
        **dict.fromkeys((336000, 336200), Meaning.INTERNAL),
        **dict.fromkeys((336001, 336002, 336003), Meaning.INVALID),
    },
    # Cloudflare: "Errors" (Workers AI).
    "errors": {
        3006: Meaning.TOO_LARGE,
        3007: Meaning.TIMEOUT,
        3036: Meaning.NO_MONEY,
        3040: Meaning.OVERLOAD,
        5004: Meaning.INVALID,
        5007: Meaning.MODEL,
        5021: Meaning.CONTEXT_LENGTH,
        7009: Meaning.UNAVAILABLE,
        10000: Meaning.KEY,
    },
    # iFlow: iflow-cli's issues.
    "status": {434: Meaning.KEY, 435: Meaning.MODEL, 449: Meaning.RATE_LIMIT},
}
"""The meanings of numbers, by the key that holds them; the empty key stands for `code`."""


def of_name(name: str) -> Meaning | None:
    """Return the meaning of a code in words. Of `com.amazon#ThrottlingException` the last part counts."""
    return _BY_NAME.get(_plain(name.rpartition("#")[2])) if name.isascii() and len(name) < _MAX_NAME else None


def of_number(place: str, number: int) -> Meaning | None:
    """Return the meaning of a number under this key."""
    return _BY_NUMBER.get(place, {}).get(number)


def reason(status: int, meaning: Meaning | None) -> Reason:
    """Return the reason of an error with this HTTP status. 401 and 402 say enough by themselves."""
    by_status = BY_STATUS.get(status, Reason.UPSTREAM_ERROR)
    if meaning is None or meaning.reason is None or status in (401, 402):
        return by_status
    if meaning is Meaning.RATE_LIMIT and status == 413:
        return by_status  # Groq: one request is larger than the limit of a minute
    return Reason.UPSTREAM_MODERATED if meaning.reason is _FILTERED and status == 403 else meaning.reason


_FILTERED = Reason.UPSTREAM_CONTENT_FILTERED
