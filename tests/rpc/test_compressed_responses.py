"""Responses that are compressed although the service requests no compression, through both HTTP clients."""

import gzip
import json
import zlib

import grpc
import pytest

from support import Script, failure, http, outcome, request, service

Code = grpc.StatusCode
NO_RETRIES = {"max_retries": 0}
LIMITS = {"max_response_bytes": 1 << 20, "max_event_bytes": 1 << 16, **NO_RETRIES}
CHOICE = {"index": 0, "finish_reason": "stop"}
COMPLETION = json.dumps({"choices": [{**CHOICE, "message": {"content": "Hello"}}]}).encode()
STREAM = b"data: " + json.dumps({"choices": [{**CHOICE, "delta": {"content": "Hello"}}]}).encode() + b"\n\n"
QUOTA = json.dumps({"error": {"message": "pay first", "code": "insufficient_quota"}}).encode()
BOMB = gzip.compress(bytes(64 << 20), 9)
RPCS = ["CreateChatCompletion", "CreateChatCompletionStream"]


@pytest.mark.parametrize("engine", ["builtin", "httpx"])
@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, bytes], ids=["gzip", "deflate", "not"])
async def test_compressed(script: Script, engine: str, compress: type[bytes]) -> None:
    encoding = "deflate" if compress is zlib.compress else "gzip"
    async with service(script.base_url, upstream={"http_client": engine, **NO_RETRIES}) as chat:
        for rpc in RPCS:
            script.respond_with(http(compress(QUOTA), "429 Slow", content_encoding=encoding))
            failed = await failure(getattr(chat.stub, rpc)(request()))
            assert (failed.reason, failed.message) == ("UPSTREAM_QUOTA_EXHAUSTED", "pay first")
            assert failed.details["UpstreamError"].raw_body == QUOTA.decode()
        script.respond_with(http(compress(COMPLETION), content_encoding=encoding))
        ended = await outcome(chat.stub.CreateChatCompletion(request()))
        assert ended.messages[0].choices[0].message.content == "Hello"
        script.respond_with(http(compress(STREAM), content_type="text/event-stream", content_encoding=encoding))
        ended = await outcome(chat.stub.CreateChatCompletionStream(request()))
        assert ended.messages[0].choices[0].delta.content == "Hello"


FAILURES = [
    ("bomb-in-an-error", http(BOMB, "503 No", content_encoding="gzip"), "UPSTREAM_UNAVAILABLE", "HTTP 503"),
    (
        "cut-error",
        http(gzip.compress(QUOTA)[:-9], "429 No", content_encoding="gzip"),
        "UPSTREAM_QUOTA_EXHAUSTED",
        "pay",
    ),
    ("brotli-error", http(b"\x0b\x02\x80", "503 No", content_encoding="br"), "UPSTREAM_UNAVAILABLE", "encoding br"),
    ("brotli", http(b"\x0b\x02\x80", content_encoding="br"), "UPSTREAM_INVALID_RESPONSE", "(br)"),
    ("invalid", http(b"\x1f\x8b\xff\xff\xff", content_encoding="gzip"), "UPSTREAM_INVALID_RESPONSE", "compressed data"),
]


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize(
    ("response", "reason", "words"), [row[1:] for row in FAILURES], ids=[row[0] for row in FAILURES]
)
async def test_failure(script: Script, rpc: str, response: bytes, reason: str, words: str) -> None:
    script.respond_with(response)
    async with service(script.base_url, upstream=LIMITS) as chat:
        failed = await failure(getattr(chat.stub, rpc)(request()))
    assert failed.reason == reason
    assert words in failed.message


@pytest.mark.parametrize(("rpc", "setting"), [(RPCS[0], "max_response_bytes"), (RPCS[1], "max_event_bytes")])
async def test_a_bomb_stays_within_the_limits(script: Script, rpc: str, setting: str) -> None:
    start = b"data: " if rpc.endswith("Stream") else b""
    bomb = gzip.compress(start + b'{"a": "' + b"a" * (64 << 20), 9)
    script.respond_with(http(bomb, content_encoding="gzip"))
    async with service(script.base_url, upstream=LIMITS) as chat:
        failed = await failure(getattr(chat.stub, rpc)(request()))
    assert failed.reason == "UPSTREAM_INVALID_RESPONSE"
    assert setting in failed.message
