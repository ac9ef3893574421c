"""The response headers of providers that mean the same by different names: request ids and rate limits. Pure."""

import re
from collections.abc import Callable, Iterator, Mapping

REQUEST_IDS = (
    "x-request-id",  # OpenAI API reference, "Debugging requests"; Groq, Mistral, Together, vLLM
    "request-id",  # Anthropic API reference, "Request id"
    "apim-request-id",  # Azure API Management, as Azure OpenAI sends it
    "x-ms-request-id",  # Azure REST guidelines
    "x-amzn-requestid",  # Amazon Bedrock, "Common response headers"
    "x-tt-logid",  # Volcengine Ark
    "x-siliconcloud-trace-id",  # SiliconFlow API reference
    "msh-request-id",  # Moonshot
    "minimax-request-id",  # MiniMax
    "trace-id",  # MiniMax API reference, "Trace-Id"
    "nvcf-reqid",  # NVIDIA Cloud Functions API reference
    "mistral-correlation-id",  # Mistral
    "x-ds-trace-id",  # DeepSeek
    "x-log-id",  # Zhipu
    "x-generation-id",  # OpenRouter
    "x-litellm-call-id",  # LiteLLM proxy, "Response headers"
    "x-portkey-trace-id",  # Portkey gateway
    "cf-aig-log-id",  # Cloudflare AI Gateway
    "cf-ray",  # Cloudflare: last, because it names the request at the edge, not at the provider
)
"""Names of the upstream's request id, the most specific one first."""

REMAINING = {
    "x-ratelimit-remaining-requests": "requests",  # OpenAI API reference, "Rate limits"; Azure, Groq, Together
    "x-ratelimit-remaining-tokens": "tokens",
    "anthropic-ratelimit-requests-remaining": "requests",  # Anthropic API reference, "Rate limits"
    "anthropic-ratelimit-tokens-remaining": "tokens",
    "x-ratelimit-remaining": "requests",  # OpenRouter, GitHub
    "ratelimit-remaining": "requests",  # IETF draft-ietf-httpapi-ratelimit-headers, up to version 07
}
"""Headers that state what remains of a rate limit, and its kind in metrics."""

_RATE_LIMIT = re.compile(r"(?:(?:x|anthropic)-)?rate-?limit(?:bysize)?(?:-[a-z0-9_.-]{1,50}(?<!-bin))?")
"""Names of rate limits: OpenAI's and Anthropic's prefixes, the IETF draft's `ratelimit`, Mistral's `ratelimitbysize`.

gRPC rejects other metadata keys, and requires bytes for keys that end in `-bin`.
"""


def request_id(headers: Mapping[str, str], is_shown: Callable[[str], bool] = bool) -> str:
    """Return the upstream's request id, the first that `is_shown` accepts; empty if there is none."""
    found = (headers.get(name, "") for name in REQUEST_IDS)
    return next((value for value in found if value and is_shown(value)), "")


def rate_limits(headers: Mapping[str, str], is_shown: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Yield the names and values of rate limits that `is_shown` accepts."""
    for name, value in headers.items():
        if _RATE_LIMIT.fullmatch(name) and is_shown(value):
            yield name, value
