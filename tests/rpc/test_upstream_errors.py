"""Errors of an upstream and the caller's view of them: one row each, over real sockets."""

import json

import grpc
import pytest

from support import Script, collect, failure, http, request, service, sse

Code = grpc.StatusCode
NO_RETRIES = {"max_retries": 0}


def error_body(message: str = "no", **fields: object) -> bytes:
    return json.dumps({"error": {"message": message, "type": "t", "param": None, "code": None, **fields}}).encode()


CHUNK = json.dumps({"id": "c", "choices": [{"index": 0, "delta": {"content": "Hel"}}]}).encode()
END = json.dumps({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).encode()

STATUSES = [
    ("400 Bad Request", {}, Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_REQUEST"),
    ("400 Bad Request", {"code": "context_length_exceeded"}, Code.INVALID_ARGUMENT, "UPSTREAM_CONTEXT_LENGTH_EXCEEDED"),
    ("400 Bad Request", {"code": "content_filter"}, Code.INVALID_ARGUMENT, "UPSTREAM_CONTENT_FILTERED"),
    ("401 Unauthorized", {"code": "invalid_api_key"}, Code.INTERNAL, "UPSTREAM_UNAUTHENTICATED"),
    ("402 Payment Required", {}, Code.FAILED_PRECONDITION, "UPSTREAM_INSUFFICIENT_BALANCE"),
    ("403 Forbidden", {}, Code.PERMISSION_DENIED, "UPSTREAM_FORBIDDEN"),
    ("403 Forbidden", {"code": "moderation"}, Code.PERMISSION_DENIED, "UPSTREAM_MODERATED"),
    ("404 Not Found", {}, Code.NOT_FOUND, "UPSTREAM_NOT_FOUND"),
    ("404 Not Found", {"code": "model_not_found"}, Code.NOT_FOUND, "UPSTREAM_MODEL_NOT_FOUND"),
    ("405 Method Not Allowed", {}, Code.UNIMPLEMENTED, "UPSTREAM_UNIMPLEMENTED"),
    ("408 Request Timeout", {}, Code.DEADLINE_EXCEEDED, "UPSTREAM_TIMEOUT"),
    ("409 Conflict", {}, Code.ABORTED, "UPSTREAM_CONFLICT"),
    ("413 Content Too Large", {}, Code.INVALID_ARGUMENT, "UPSTREAM_REQUEST_TOO_LARGE"),
    ("415 Unsupported Media Type", {}, Code.INVALID_ARGUMENT, "UPSTREAM_UNPROCESSABLE"),
    ("422 Unprocessable Content", {}, Code.INVALID_ARGUMENT, "UPSTREAM_UNPROCESSABLE"),
    ("418 I'm a teapot", {}, Code.FAILED_PRECONDITION, "UPSTREAM_ERROR"),
    ("429 Too Many Requests", {"code": "rate_limit_exceeded"}, Code.RESOURCE_EXHAUSTED, "UPSTREAM_RATE_LIMITED"),
    ("429 Too Many Requests", {"code": "insufficient_quota"}, Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA_EXHAUSTED"),
    ("500 Internal Server Error", {}, Code.INTERNAL, "UPSTREAM_INTERNAL"),
    ("501 Not Implemented", {}, Code.UNIMPLEMENTED, "UPSTREAM_UNIMPLEMENTED"),
    ("502 Bad Gateway", {}, Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"),
    ("503 Service Unavailable", {}, Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"),
    ("503 Service Unavailable", {"code": "overloaded"}, Code.UNAVAILABLE, "UPSTREAM_OVERLOADED"),
    ("504 Gateway Timeout", {}, Code.DEADLINE_EXCEEDED, "UPSTREAM_TIMEOUT"),
    ("507 Insufficient Storage", {}, Code.INTERNAL, "UPSTREAM_ERROR"),
    ("524 A Timeout Occurred", {}, Code.DEADLINE_EXCEEDED, "UPSTREAM_TIMEOUT"),
    ("529 Site is overloaded", {}, Code.UNAVAILABLE, "UPSTREAM_OVERLOADED"),
]


@pytest.mark.parametrize("rpc", ["CreateChatCompletion", "CreateChatCompletionStream"])
@pytest.mark.parametrize(
    ("status", "fields", "code", "reason"), STATUSES, ids=[f"{s[:3]}-{r}" for s, _, _, r in STATUSES]
)
async def test_http_status(
    script: Script, rpc: str, status: str, fields: dict[str, str], code: Code, reason: str
) -> None:
    script.respond_with(http(error_body("it said no", **fields), status, x_request_id="req-7"))
    async with service(script.base_url, upstream=NO_RETRIES) as chat:
        failed = await failure(getattr(chat.stub, rpc)(request()))
    assert (failed.code, failed.reason) == (code, reason)
    assert failed.details["ErrorInfo"].domain == "chatrpc.dev"
    assert failed.details["RequestInfo"].request_id == "req-7"
    assert failed.details["UpstreamError"].http_status == int(status[:3])
    assert failed.details["UpstreamError"].request_id == "req-7"
    assert ("QuotaFailure" in failed.details) == (status[:3] in ("402", "429"))
    if status.startswith("401"):
        # The error concerns the service's key, so it is for the operator, not for the caller.
        assert "it said no" not in str(failed)
        assert failed.message == "the upstream rejected this service's credentials"
    else:
        assert failed.message == "it said no"
        assert failed.details["UpstreamError"].message == "it said no"


@pytest.mark.parametrize("status", ["400 Bad Request", "422 Unprocessable Content"])
async def test_bad_request_names_the_field(script: Script, status: str) -> None:
    script.respond_with(http(error_body("too hot", param="temperature"), status))
    async with service(script.base_url) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request()))
    (violation,) = failed.details["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("temperature", "too hot")


@pytest.mark.parametrize(
    ("headers", "fields", "seconds"),
    [
        ({"retry_after": "7"}, {}, 7.0),
        ({"retry_after_ms": "1500", "retry_after": "7"}, {}, 1.5),
        ({}, {}, None),
        ({"retry_after": "7"}, {"code": "insufficient_quota"}, None),
    ],
    ids=["seconds", "milliseconds-first", "none", "never-for-quota"],
)
async def test_retry_info(
    script: Script, headers: dict[str, str], fields: dict[str, str], seconds: float | None
) -> None:
    script.respond_with(http(error_body(**fields), "429 Too Many Requests", **headers))
    async with service(script.base_url, upstream=NO_RETRIES) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request()))
    if seconds is None:
        assert "RetryInfo" not in failed.details
    else:
        assert failed.details["RetryInfo"].retry_delay.ToNanoseconds() == seconds * 1e9


HTML = b"<html><body>502 Bad Gateway</body></html>"
BODIES = [
    ("html", http(HTML, content_type="text/html"), Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE"),
    ("html-502", http(HTML, "502 Bad Gateway", "text/html"), Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"),
    ("redirect", http(b"", "302 Found", location="http://127.0.0.1:1/"), Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE"),
    ("gzip", http(b"\x1f\x8b", content_encoding="gzip"), Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE"),
    ("error-in-200", http(error_body("slow down", code=429)), Code.RESOURCE_EXHAUSTED, "UPSTREAM_ERROR_BODY"),
    ("not-http", b"what?\r\n\r\n", Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE"),
]


@pytest.mark.parametrize("rpc", ["CreateChatCompletion", "CreateChatCompletionStream"])
@pytest.mark.parametrize(("response", "code", "reason"), [b[1:] for b in BODIES], ids=[b[0] for b in BODIES])
async def test_invalid_response(script: Script, rpc: str, response: bytes, code: Code, reason: str) -> None:
    script.respond_with(response)
    async with service(script.base_url, upstream=NO_RETRIES) as chat:
        failed = await failure(getattr(chat.stub, rpc)(request()))
    assert (failed.code, failed.reason) == (code, reason)
    assert "Traceback" not in failed.message


@pytest.mark.parametrize("label", ["text/event-stream", "text/plain", ""])
async def test_an_unframed_error_in_a_stream_is_reported_with_any_content_type(script: Script, label: str) -> None:
    script.respond_with(http(b"\n" + error_body("slow down", code=429), content_type=label))
    async with service(script.base_url, upstream=NO_RETRIES) as chat:
        failed = await failure(chat.stub.CreateChatCompletionStream(request()))
    assert (failed.code, failed.reason, failed.message) == (Code.RESOURCE_EXHAUSTED, "UPSTREAM_ERROR_BODY", "slow down")


@pytest.mark.parametrize("rpc", ["CreateChatCompletion", "CreateChatCompletionStream"])
@pytest.mark.parametrize(
    ("response", "words"),
    [
        (http(b"sorry", content_type="application/json"), "sorry"),
        (http(b'{"answer": 5}', content_type="application/json"), '"answer": 5'),
        (http(b"see there", "307 Temporary", location="https://a.example/v1?key=secret"), "see there"),
    ],
    ids=["text", "no-completion", "redirect"],
)
async def test_the_start_of_an_invalid_response_reaches_the_caller(
    script: Script, rpc: str, response: bytes, words: str
) -> None:
    key = "topsecret-canary-4711"
    script.respond_with(response.replace(b"sorry", b"sorry, " + key.encode()))
    async with service(script.base_url, upstream={"api_key": key, **NO_RETRIES}) as chat:
        failed = await failure(getattr(chat.stub, rpc)(request()))
    assert failed.reason == "UPSTREAM_INVALID_RESPONSE"
    assert words in failed.details["UpstreamError"].raw_body
    assert failed.details["UpstreamError"].message == failed.message
    assert "secret" not in str(failed)


UNARY_BODIES = [
    ("not-json", http(b"Hello"), Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE"),
    ("no-completion", http(b'{"foo": 1}'), Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE"),
    ("empty", http(b""), Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE"),
    ("too-large", http(b'{"choices":[' + b" " * 5000 + b"]}"), Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE"),
    (
        "cut",
        b'HTTP/1.1 200 OK\r\ncontent-length: 99\r\nconnection: close\r\n\r\n{"choices"',
        Code.UNAVAILABLE,
        "UPSTREAM_TRUNCATED",
    ),
]


@pytest.mark.parametrize(
    ("response", "code", "reason"), [b[1:] for b in UNARY_BODIES], ids=[b[0] for b in UNARY_BODIES]
)
async def test_invalid_unary_response(script: Script, response: bytes, code: Code, reason: str) -> None:
    script.respond_with(response)
    limits = {"max_response_bytes": 4096, "max_event_bytes": 1024, **NO_RETRIES}
    async with service(script.base_url, upstream=limits) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert (failed.code, failed.reason) == (code, reason)


def cut(*events: bytes) -> bytes:
    """Return a chunked event stream whose connection closes without the last chunk."""
    data = b"".join(b"data: " + event + b"\n\n" for event in events)
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return head + b"%x\r\n" % len(data) + data + b"\r\n"


STREAMS = [
    ("eof-without-finish", sse(CHUNK, done=False), 1, Code.UNAVAILABLE, "UPSTREAM_TRUNCATED"),
    ("connection-cut", cut(CHUNK), 1, Code.UNAVAILABLE, "UPSTREAM_TRUNCATED"),
    ("cut-inside-event", sse(CHUNK, CHUNK[:20], done=False), 1, Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE"),
    ("nothing", sse(done=False), 0, Code.UNAVAILABLE, "UPSTREAM_TRUNCATED"),
    ("error-object", sse(CHUNK, error_body("boom", code=502)), 1, Code.UNAVAILABLE, "UPSTREAM_ERROR_BODY"),
    (
        "error-known",
        sse(CHUNK, error_body("x", code="rate_limit_exceeded")),
        1,
        Code.RESOURCE_EXHAUSTED,
        "UPSTREAM_ERROR_BODY",
    ),
    ("error-unknown", sse(CHUNK, error_body("boom", code="odd")), 1, Code.INTERNAL, "UPSTREAM_ERROR_BODY"),
    ("garbage", sse(CHUNK, b"{garbage"), 1, Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE"),
    ("huge-event", sse(CHUNK, b" " * 2000), 1, Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE"),
    (
        "one-of-two-choices",
        sse(CHUNK, END, CHUNK.replace(b'"index": 0', b'"index": 1'), done=False),
        3,
        Code.UNAVAILABLE,
        "UPSTREAM_TRUNCATED",
    ),
]


@pytest.mark.parametrize(
    ("response", "delivered", "code", "reason"), [s[1:] for s in STREAMS], ids=[s[0] for s in STREAMS]
)
async def test_stream_that_fails(script: Script, response: bytes, delivered: int, code: Code, reason: str) -> None:
    """The chunks before the fault are delivered, and the fault is reported."""
    script.respond_with(response)
    async with service(script.base_url, upstream={"max_event_bytes": 1024}, coalesce=False) as chat:
        failed = await failure(chat.stub.CreateChatCompletionStream(request()))
        assert len(script.exchanges) == (1 if delivered else 3), "a stream that has begun must not be retried"
    assert (failed.code, failed.reason, len(failed.messages)) == (code, reason, delivered)


@pytest.mark.parametrize(
    "response",
    [sse(CHUNK, END), sse(CHUNK, END, done=False), sse(CHUNK), cut(CHUNK, END, b"[DONE]")],
    ids=["done", "finish-reason-only", "done-only", "cut-after-done"],
)
async def test_stream_that_is_complete(script: Script, response: bytes) -> None:
    script.respond_with(response)
    async with service(script.base_url) as chat:
        chunks = await collect(chat.stub.CreateChatCompletionStream(request()))
    assert chunks[0].choices[0].delta.content == "Hel"


async def test_unreachable() -> None:
    async with service("http://127.0.0.1:1/v1") as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request()))
        assert chat.value("chatrpc_upstream_retries_total", code="", outcome="no_response") == 2
    assert (failed.code, failed.reason) == (Code.UNAVAILABLE, "UPSTREAM_UNREACHABLE")


@pytest.mark.parametrize("status", ["400 Bad Request", "429 Too Many Requests", "500 Internal Server Error"])
@pytest.mark.parametrize("letter", ["a", "\x01", "é", "模", "\N{PILE OF POO}"], ids=ascii)
@pytest.mark.parametrize("length", [300, 1000, 2000, 3000])
async def test_the_largest_error_fits_into_the_trailers(script: Script, status: str, letter: str, length: int) -> None:
    """`failure` checks the limit in every test; this is the largest error of an upstream."""
    huge = letter * length
    limits = {f"x_ratelimit_{name}_{number}": "9" * 64 for name in ("limit", "remaining") for number in range(9)}
    body = json.dumps(
        {"error": {"message": huge, "type": huge, "param": huge, "code": huge}}, ensure_ascii=False
    ).encode()
    script.respond_with(http(body, status, retry_after="1", x_request_id="r" * 64, **limits))
    async with service(script.base_url, upstream=NO_RETRIES) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request(), metadata=[("x-request-id", "r" * 128)]))
    assert failed.message.startswith(letter * 100)
    assert failed.details["UpstreamError"].code.startswith(letter * 20)


async def test_keys_in_texts_of_the_upstream_are_redacted(script: Script) -> None:
    key = "topsecret/canary-4711"
    said = error_body(f"key {key} or sk-abcdefgh12345678 may not do that", code=key, type=f"t {key}")
    script.respond_with(http(said.replace(b"/canary", b"\\/canary"), "403 Forbidden"))
    async with service(script.base_url, upstream={"api_key": key}) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert f"Bearer {key}".encode() in script.exchanges[0].head
    assert failed.message == "key [redacted] or [redacted] may not do that"
    assert key not in str(failed)
    assert "sk-abcdefgh" not in str(failed)


async def test_a_key_at_the_cut_is_redacted(script: Script) -> None:
    key = "topsecret-canary-4711"
    script.respond_with(http(error_body("x" * 1015 + key), "403 Forbidden"))
    async with service(script.base_url, upstream={"api_key": key}) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert "topsecret" not in str(failed)


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        ("401 Unauthorized", Code.INTERNAL, "UPSTREAM_UNAUTHENTICATED"),
        ("503 Service Unavailable", Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"),
    ],
)
async def test_an_error_with_a_truncated_body_keeps_its_status(
    script: Script, status: str, code: Code, reason: str
) -> None:
    script.respond_with(f"HTTP/1.1 {status}\r\ncontent-length: 99\r\nconnection: close\r\n\r\n{{".encode())
    async with service(script.base_url, upstream=NO_RETRIES) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert (failed.code, failed.reason) == (code, reason)


async def test_an_unexpected_exception_reveals_nothing(
    script: Script, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from chatrpc_server.core.openai import responses

    def broken(body: bytes) -> None:
        raise ValueError("secret detail")

    monkeypatch.setattr(responses, "parse_response", broken)
    script.respond_with(http(b"{}"))
    async with service(script.base_url) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request(), metadata=[("x-request-id", "mine")]))
    assert (failed.code, failed.reason, failed.message) == (Code.INTERNAL, "INTERNAL", "internal error")
    assert failed.details["RequestInfo"].request_id == "mine"
    assert "secret detail" not in str(failed)
    assert any(record.event == "unexpected_error" and record.exc_info for record in caplog.records)
