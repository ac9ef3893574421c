"""Small inputs that public reports of real providers describe, through the whole service: files of ../shared/cases.

A case is an upstream's bytes, step by step, and the caller's view of them. The format is described in README.md beside
the files.
"""

import asyncio
import gzip
import json
import time
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest
from support import Exchange, Outcome, Responder, Script, outcome, request, service

FOLDER = Path(__file__).parents[3] / "shared" / "cases"
ENGINES = ("builtin", "httpx")
HANG_SECONDS = 30
"""Deadline of calls whose case has none."""

RENAMED = {
    "CONTENT_FILTERED": "UPSTREAM_CONTENT_FILTERED",
    "CONTEXT_LENGTH_EXCEEDED": "UPSTREAM_CONTEXT_LENGTH_EXCEEDED",
    "INSUFFICIENT_BALANCE": "UPSTREAM_INSUFFICIENT_BALANCE",
    "INSUFFICIENT_QUOTA": "UPSTREAM_QUOTA_EXHAUSTED",
    "MODEL_NOT_FOUND": "UPSTREAM_MODEL_NOT_FOUND",
    "MODERATED": "UPSTREAM_MODERATED",
    "OVERLOADED": "UPSTREAM_OVERLOADED",
    "QUOTA_EXHAUSTED": "UPSTREAM_QUOTA_EXHAUSTED",
    "RATE_LIMITED": "UPSTREAM_RATE_LIMITED",
    "REQUEST_TOO_LARGE": "UPSTREAM_REQUEST_TOO_LARGE",
    "STREAM_ERROR": "UPSTREAM_ERROR_BODY",
    "UNPROCESSABLE": "UPSTREAM_UNPROCESSABLE",
    "UPSTREAM_STREAM_TRUNCATED": "UPSTREAM_TRUNCATED",
}
"""The reasons of protos/chatrpc/v1/chat_error.proto, by the older names that the cases use."""

if not FOLDER.is_dir():
    pytest.skip(f"no cases beside the project, at ../shared/{FOLDER.name}", allow_module_level=True)

CASES = [
    pytest.param(case, engine, id=f"{file.stem.partition('-')[0]}-{case['id']}-{engine}")
    for file in sorted(FOLDER.glob("*.json"))
    for case in json.loads(file.read_text())
    for engine in ENGINES
]


def to_bytes(text: str) -> bytes:
    """Return latin-1 bytes, with characters beyond 255 in UTF-8."""
    return b"".join(character.encode("utf-8" if ord(character) > 255 else "latin-1") for character in text)


def step_bytes(step: Any) -> bytes:
    """Return the bytes of a step that sends some."""
    match step:
        case str():
            return to_bytes(step)
        case {"chunk": content}:
            data = step_bytes(content)
            return b"%x\r\n%s\r\n" % (len(data), data)
        case {"repeat": content, "times": times}:
            return step_bytes(content) * int(times)
        case {"gzip": content}:
            return gzip.compress(step_bytes(content))
        case {"b64": content}:
            return b64decode(content)
    raise ValueError(f"unknown step: {step!r:.100}")


def responder(steps: list[Any]) -> Responder:
    """Return the response of these steps."""

    async def respond(exchange: Exchange) -> None:
        for step in steps:
            match step:
                case "CLOSE":
                    exchange.writer.close()
                    return
                case "RESET":
                    exchange.reset()
                    return
                case int() | float():
                    await asyncio.sleep(step)
                case _:
                    await exchange.send(step_bytes(step))

    return respond


def settings_of(env: dict[str, str]) -> dict[str, Any]:
    """Return settings by group from environment variables such as `CHATRPC_LIMITS__MAX_IN_FLIGHT`."""
    settings: dict[str, Any] = {}
    for name, value in env.items():
        *groups, field = name.removeprefix("CHATRPC_").lower().split("__")
        holder = settings
        for group in groups:
            holder = holder.setdefault(group, {})
        holder[field] = value
    return settings


def choice_texts(messages: list[Any], *, streamed: bool) -> dict[int, str]:
    """Return the text of each choice, by its index."""
    texts: dict[int, str] = {}
    for message in messages:
        for choice in message.choices:
            content = choice.delta.content if streamed else choice.message.content
            texts[choice.index] = texts.get(choice.index, "") + content
    return texts


def check(expected: dict[str, Any], ended: Outcome, seen: dict[str, Any]) -> None:
    """Compare the caller's view with `expect`. `seen` has what cases call `r`."""
    messages = [MessageToDict(message, preserving_proto_field_name=True) for message in ended.messages]
    upstream_error = ended.details.get("UpstreamError")
    anywhere = "\n".join(
        [
            ended.message,
            "" if upstream_error is None else json.dumps(MessageToDict(upstream_error), ensure_ascii=False),
            json.dumps(messages, ensure_ascii=False),
        ]
    )
    for key, value in expected.items():
        match key:
            case "code":
                assert seen["code"] in ([value] if isinstance(value, str) else value)
            case "reason":
                mapped = ended.details["ErrorInfo"].metadata.get("mapped_reason", "")
                assert RENAMED.get(value, value) in (ended.reason, mapped)
            case "text" | "attempts":
                assert seen[key] == value
            case "contains":
                assert value in anywhere
            case "not_contains":
                assert value not in anywhere
            case "retry_after_at_least":
                assert ended.details["RetryInfo"].retry_delay.ToMilliseconds() >= value * 1000
            case "max_seconds":
                assert seen["seconds"] <= value
            case "finish":
                assert seen["finish"] == {int(index): reason for index, reason in value.items()}
            case "assert":
                assert eval(value, {"raw": ended.messages, "m": messages, "r": seen}), value
            case _:
                raise ValueError(f"unknown expectation: {key}")


@pytest.mark.parametrize(("case", "engine"), CASES)
async def test_case(script: Script, case: dict[str, Any], engine: str) -> None:
    script.respond_with(*map(responder, case["upstream"]))
    changes = settings_of(case.get("env", {}))
    upstream = {"http_client": engine, **changes.pop("upstream", {})}
    message = request()
    ParseDict(case.get("request", {}), message)
    assert isinstance(message, CreateChatCompletionRequest)
    async with service(script.base_url, upstream=upstream, **changes) as chat:
        streamed = case["rpc"] == "stream"
        rpc = chat.stub.CreateChatCompletionStream if streamed else chat.stub.CreateChatCompletion
        started = time.monotonic()
        call = rpc(message, timeout=case.get("timeout", HANG_SECONDS), metadata=case.get("metadata", ()))
        ended = await outcome(call)
        seconds = time.monotonic() - started
    texts = choice_texts(ended.messages, streamed=streamed)
    check(
        case["expect"],
        ended,
        {
            "code": ended.code.name,
            "reason": ended.reason,
            "message": ended.message,
            "details": ended.details,
            "text": next(iter(texts.values()), ""),
            "texts": texts,
            "finish": {
                choice.index: choice.finish_reason
                for message in ended.messages
                for choice in message.choices
                if choice.finish_reason
            },
            "attempts": len(script.exchanges),
            "seconds": seconds,
        },
    )
