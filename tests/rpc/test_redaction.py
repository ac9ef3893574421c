"""No log, metric or status holds prompts, completions or keys, for any outcome of the call.

Every part of a request and of a response that holds text of people carries a canary, through every fault and every
rejection by the service itself. Then the test searches logs, metrics and statuses for the canaries. The text of an
upstream's error is for the caller only, never for a log or a metric.
"""

import base64
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest
from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from chatrpc_server.settings import Address
from chatrpc_server.telemetry import logs
from support import Exchange, Outcome, Script, Service, collect, http, http2, outcome, request, service, sse
from support.faults import FAULTS, Faults
from support.process import ANY_PORTS, running

KEY, CALLERS_KEY = "sk-canary-key-0123456789", "canary-callers-key"
PROMPTS = [
    f"canary-{place}" for place in ("system", "user", "image", "name", "tool", "arguments", "result", "stop", "id")
]
COMPLETIONS = ["canary-content", "canary-refusal", "canary-reasoning", "canary-call"]
ERROR = "canary-error"
RPCS = ["CreateChatCompletion", "CreateChatCompletionStream"]
SERVICE = {
    "connect_timeout_seconds": 0.2,
    "first_chunk_timeout_seconds": 0.4,
    "chunk_gap_timeout_seconds": 0.4,
    "max_event_bytes": 1 << 20,
    "max_response_bytes": 4 << 20,
    "api_key": KEY,
}


def _request(model: str) -> CreateChatCompletionRequest:
    """Return a request with a canary in each place of a prompt."""
    system, user, image, name, tool, arguments, result, stop, call_id = PROMPTS
    asked = CreateChatCompletionRequest(model=model, user="someone")
    asked.messages.extend([ChatMessage(role="system", content=system), ChatMessage(role="user", name=name)])
    asked.messages[-1].content_parts.add().text = user
    picture = f"data:image/png;base64,{base64.b64encode(image.encode()).decode()}{image}"
    asked.messages[-1].content_parts.add().image_url.url = picture
    call = asked.messages.add(role="assistant").tool_calls.add(id=call_id, type="function")
    call.function.name, call.function.arguments = "f", f'{{"a": "{arguments}"}}'
    asked.messages.append(ChatMessage(role="tool", tool_call_id=call_id, content=result))
    function = asked.tools.add(type="function").function
    function.name, function.description = "f", tool
    asked.stop.append(stop)
    return asked


def _completion(kind: str) -> bytes:
    content, refusal, reasoning, call = COMPLETIONS
    return (
        f'{{"choices": [{{"index": 0, "{kind}": {{"role": "assistant", "content": "{content}", "refusal": "{refusal}",'
        f' "reasoning_content": "{reasoning}", "tool_calls": [{{"index": 0, "id": "{call}", "type": "function",'
        f' "function": {{"name": "{call}", "arguments": "{call}"}}}}]}}}}]}}'
    ).encode()


ERROR_BODY = f'{{"error": {{"message": "{ERROR} {KEY}", "type": "{ERROR}", "code": "{ERROR}", "param": "{ERROR}"}}}}'
RESPONSES = {
    "response": http(_completion("message")),
    "stream": sse(_completion("delta")),
    "truncated": sse(_completion("delta"), done=False),
    "no-json": http(COMPLETIONS[0].encode()),
    "bad-event": sse(_completion("delta"), COMPLETIONS[0].encode()),
    "html": http(f"<html>{COMPLETIONS[0]}".encode(), content_type="text/html"),
    "no-completion": http(f'{{"text": "{COMPLETIONS[0]}"}}'.encode()),
    "wrong-type": http(f'{{"choices": "{COMPLETIONS[0]}"}}'.encode()),
    "error-in-success": http(ERROR_BODY.encode()),
    "error-in-stream": sse(_completion("delta"), ERROR_BODY.encode()),
    **{
        f"http-{code}": http(ERROR_BODY.encode(), f"{code} {ERROR}")
        for code in (400, 401, 402, 403, 404, 422, 429, 500)
    },
    "http-odd": http(COMPLETIONS[0].encode(), f"299 {ERROR}", x_request_id="an-id"),
    "odd-headers": b"HTTP/1.1 200 OK\r\nx-request-id: canary-error\xe9\r\nx-ratelimit-canary: canary-error\xe9\r\n"
    b"canary-error-bin: \xe9\r\ncontent-length: 0\r\n\r\n",
    "headers": b"HTTP/1.1 200 OK\r\ncanary-error: canary\x00-error\r\n\r\n",
    "no-http": f"{COMPLETIONS[0]}\r\n\r\n".encode(),
}


class Places:
    """The places that must not hold a canary."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self._formatters = (logs._Json(str), logs._Text(str))  # without the redaction, which would hide a mistake

    def check(self, chat: Service, ended: Outcome) -> None:
        """Search log, metrics and status of a call."""
        registry = chat.server.metrics.registry
        metrics = [generate_latest(registry).decode(), generate_openmetrics(registry).decode()]
        _search("the log", self.log(), [KEY, CALLERS_KEY, ERROR, *PROMPTS, *COMPLETIONS])
        _search("the metrics", metrics, [KEY, CALLERS_KEY, ERROR, *PROMPTS, *COMPLETIONS])
        status = [ended.message, str(ended.details), str(ended.trailers)]
        _search("the status", status, [KEY, CALLERS_KEY, *PROMPTS])

    def log(self) -> list[str]:
        """Return all lines as they would be written without the redaction."""
        records = self._caplog.records
        assert records, "no log line, not even of the start"
        return [formatter.format(record) for record in records for formatter in self._formatters]


def _search(where: str, texts: list[str], canaries: list[str]) -> None:
    found = {canary for canary in canaries for text in texts if canary in text}
    assert not found, f"{where} has {found}"


@pytest.fixture
def places(caplog: pytest.LogCaptureFixture) -> Places:
    """The log at level `debug`, at which libraries still log only warnings."""
    for name in logs.LIBRARIES:
        caplog.set_level(logging.WARNING, name)
    caplog.set_level(logging.DEBUG)
    return Places(caplog)


@asynccontextmanager
async def _service(base_url: str, **changes: Any) -> AsyncIterator[Service]:
    limits = {"default_deadline_seconds": 1, **changes.pop("limits", {})}
    async with service(base_url, upstream=SERVICE, models=["ok"], limits=limits, **changes) as chat:
        yield chat


async def _call(chat: Service, rpc: str, asked: Any, **options: Any) -> Outcome:
    metadata = [("authorization", f"Bearer {CALLERS_KEY}"), ("x-odd", CALLERS_KEY)]
    return await outcome(getattr(chat.stub, rpc)(asked, metadata=metadata, **options))


@pytest.mark.parametrize("rpc", RPCS)
async def test_through_every_fault(rpc: str, places: Places) -> None:
    async with Faults() as upstream, _service(upstream.base_url) as chat:
        for fault in FAULTS:
            places.check(chat, await _call(chat, rpc, _request(fault)))


@pytest.mark.parametrize("engine", ["builtin", "httpx"])
@pytest.mark.parametrize("rpc", RPCS)
async def test_through_every_response(rpc: str, engine: str, script: Script, places: Places) -> None:
    async with service(script.base_url, upstream={**SERVICE, "http_client": engine, "max_retries": 0}) as chat:
        for response in RESPONSES.values():
            script.respond_with(response)
            places.check(chat, await _call(chat, rpc, _request("echo")))


@pytest.mark.parametrize("rpc", RPCS)
async def test_errors_of_the_service_itself(rpc: str, script: Script, places: Places) -> None:
    async def silence(exchange: Exchange) -> None:
        await exchange.closed_by_peer()

    def broken(request: CreateChatCompletionRequest, path: str) -> CreateChatCompletionRequest:
        setattr(request, path, f'{{"x": {PROMPTS[0]}')
        return request

    script.respond_with(silence)
    async with _service(script.base_url) as chat:
        places.check(chat, await _call(chat, rpc, _request("echo"), timeout=0.2))
        places.check(chat, await _call(chat, rpc, _request("echo"), timeout=0.01))
        places.check(chat, await _call(chat, rpc, broken(_request("echo"), "extra_json")))
        nameless = _request("echo")
        nameless.messages[0].role = ""
        places.check(chat, await _call(chat, rpc, nameless))
    async with _service(script.base_url, limits={"max_message_bytes": 10}) as chat:
        places.check(chat, await _call(chat, rpc, _request("echo")))
    script.respond_with(RESPONSES["response"])
    async with _service(script.base_url, limits={"max_message_bytes": 1500}) as chat:
        script.respond_with(http(_completion("message") + b" " * 10))
        places.check(chat, await _call(chat, rpc, _request("echo")))


@pytest.mark.parametrize("rpc", RPCS)
async def test_an_unexpected_exception(
    rpc: str, script: Script, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception may quote anything, so only its frames are logged, and the caller gets none of it."""

    def fails(request: Any, *_: Any) -> bytes:
        raise LookupError(f"{PROMPTS[1]} {KEY} {request}")

    for name in ("unary_body", "stream_body"):
        monkeypatch.setattr(f"chatrpc_server.core.openai.requests.{name}", fails)
    async with _service(script.base_url) as chat:
        ended = await _call(chat, rpc, _request("echo"))
        assert (ended.message, ended.reason) == ("internal error", "INTERNAL")
        registry = chat.server.metrics.registry
        _search("the metrics", [generate_latest(registry).decode()], [KEY, *PROMPTS])
        _search("the status", [ended.message, str(ended.details), str(ended.trailers)], [KEY, *PROMPTS])
        _search("the log", places.log(), [KEY, *PROMPTS])


ODD = f"{CALLERS_KEY}\xe9".encode("latin-1")
"""A value with one byte that is not UTF-8."""
ODD_HEADERS: dict[str, http2.Fields] = {
    "authorization": [(b"authorization", b"Bearer " + ODD)],
    "other": [(b"x-odd", ODD)],
    "two": [(b"authorization", f"Bearer {CALLERS_KEY}".encode()), (b"x-odd", b"\xff" + ODD)],
    "control": [(b"authorization", ODD + b"\x01\x7f")],
    "forwarded": [(b"x-request-id", ODD), (b"traceparent", ODD), (b"tracestate", ODD)],
    "binary": [(b"authorization-bin", ODD), (b"x-bin", b"!" + CALLERS_KEY.encode())],
    "name": [(b"x-" + ODD, b"a")],
    "upper-case": [(b"Authorization", ODD)],
    "pseudo": [(b":canary", ODD)],
    "timeout": [(b"grpc-timeout", ODD)],
    "encoding": [(b"grpc-encoding", ODD), (b"grpc-accept-encoding", ODD)],
    "agent": [(b"user-agent", ODD), (b"cookie", ODD)],
    "status": [(b"grpc-status", ODD), (b"grpc-message", ODD), (b"grpc-previous-rpc-attempts", ODD)],
    "length": [(b"content-length", ODD)],
    "long": [(b"authorization", ODD * 1000)],
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("style", ["json", "text"])
async def test_odd_metadata(echo: Echo, style: str) -> None:
    """gRPC's own loggers and its core quote metadata. No output of the process contains any."""
    flags = ["serve", *ANY_PORTS, "--health-listen=127.0.0.1:0", f"--log.format={style}", "--log.level=debug"]
    with running(*flags, OPENAI_BASE_URL=echo.base_url) as process:
        first = process.line("serving")
        addresses = {
            name: Address.parse(
                first.partition(f"{name}{'=' if style == 'text' else chr(34) + ':' + chr(34)}")[2].split(
                    " " if style == "text" else '"'
                )[0]
            )
            for name in ("listen", "health")
        }
        body = http2.message(request().SerializeToString())
        for where, address in addresses.items():
            path = http2.METHOD if where == "listen" else b"/grpc.health.v1.Health/Check"
            for fields in ODD_HEADERS.values():
                for method in {path, path + b"Stream", b"/unknown"}:
                    async with http2.connect(address) as connection:
                        await connection.send(
                            http2.headers(1, [*http2.request_fields(path=method), *fields]),
                            http2.data(1, body if where == "listen" else http2.message(b""), flags=0),
                            http2.headers(1, fields, http2.END_HEADERS | http2.END_STREAM),
                        )
                        await connection.pong()
        async with grpc.aio.insecure_channel(str(addresses["listen"])) as channel:
            stub = ChatCompletionServiceStub(channel)
            for metadata in (
                [("authorization", f"Bearer {CALLERS_KEY}")],
                [("x-bin", ODD), ("authorization-bin", ODD)],
            ):
                assert await stub.CreateChatCompletion(request(), metadata=metadata)
                assert await collect(stub.CreateChatCompletionStream(request(), metadata=metadata))
        process.signal()
        assert process.wait() == 0
    output = process.output
    assert "Invalid encoding on …" in output, "the message that had the value"
    _search("the output", [output], [CALLERS_KEY, repr(ODD)[2:-1], base64.b64encode(ODD).decode()[:-4]])


@pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized", "429 Too Many Requests"])
@pytest.mark.parametrize("rpc", RPCS)
async def test_a_key_in_the_headers_of_a_response(rpc: str, status: str, script: Script, places: Places) -> None:
    headers = {"x_request_id": f"id-{KEY}", "x_ratelimit_limit_requests": f"Bearer {KEY}", "x_ratelimit_reset": "1s"}
    body = _completion("message") if rpc == RPCS[0] else b"data: " + _completion("delta") + b"\n\ndata: [DONE]\n\n"
    script.respond_with(http(body if status == "200 OK" else ERROR_BODY.encode(), status, **headers))
    async with service(script.base_url, upstream={**SERVICE, "max_retries": 0}) as chat:
        call = getattr(chat.stub, rpc)(_request("echo"))
        ended = await outcome(call)
        metadata = [*(await call.initial_metadata() or ()), *(await call.trailing_metadata() or ())]
        assert ("x-ratelimit-reset", "1s") in metadata
        _search("the metadata", [f"{name}: {value!r}" for name, value in metadata], [KEY])
        places.check(chat, ended)
