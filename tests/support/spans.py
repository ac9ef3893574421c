"""Constants and readers for the tests of tracing."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from support import Service

ON = {"tracing": {"endpoint": "http://collector.invalid:4318"}}
UNARY, STREAM = "CreateChatCompletion", "CreateChatCompletionStream"
rpcs = pytest.mark.parametrize("rpc", [UNARY, STREAM])
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (f"00-{TRACE_ID}-{PARENT_ID}-0{flag}" for flag in (1, 0))
KEY, PROMPT = "sk-canary-0123456789abcdef", "canary-of-the-prompt"


Spans = Callable[[Service], Any]


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def traceparent(span: ReadableSpan) -> str:
    place = span.context
    return f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"
