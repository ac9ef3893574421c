"""The log lines of failed calls: their severity, and the line of an unreachable upstream."""

import json
import logging
import socket
from typing import Any

import pytest

from chatrpc_server.core.errors import Reason
from chatrpc_server.rpc.layers.errors import CALLERS_REASONS, CODES
from support import Exchange, Script, http, outcome, request, service, sse

RPCS = ["CreateChatCompletion", "CreateChatCompletionStream"]
GOOD = json.dumps(
    {"choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]}
)


def records(caplog: pytest.LogCaptureFixture, event: str) -> list[Any]:
    return [record for record in caplog.records if getattr(record, "event", "") == event]


def error(status: str, code: str = "") -> bytes:
    return http(json.dumps({"error": {"message": "no", "code": code}}).encode(), status)


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize(
    ("response", "level", "reason"),
    [
        (http(GOOD.encode()), "INFO", None),
        (error("400 Bad Request"), "INFO", "UPSTREAM_INVALID_REQUEST"),
        (error("404 Not Found", "model_not_found"), "INFO", "UPSTREAM_MODEL_NOT_FOUND"),
        (error("404 Not Found"), "WARNING", "UPSTREAM_NOT_FOUND"),
        (error("401 Unauthorized"), "WARNING", "UPSTREAM_UNAUTHENTICATED"),
        (error("429 Too Many Requests"), "WARNING", "UPSTREAM_RATE_LIMITED"),
        (error("500 Internal Server Error"), "WARNING", "UPSTREAM_INTERNAL"),
        (http(b"canary"), "WARNING", "UPSTREAM_INVALID_RESPONSE"),
        (sse(b'{"error": {"message": "no"}}'), "WARNING", "UPSTREAM_ERROR_BODY"),
    ],
)
async def test_severity(
    script: Script, caplog: pytest.LogCaptureFixture, rpc: str, response: bytes, level: str, reason: str | None
) -> None:
    caplog.set_level(logging.INFO)
    script.respond_with(response)
    async with service(script.base_url, upstream={"max_retries": 0}) as chat:
        await outcome(getattr(chat.stub, rpc)(request()))
    (record,) = records(caplog, "call")
    assert (record.levelname, record.reason) == (level, reason)


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize(
    ("code", "level", "mapped"),
    [
        ("insufficient_quota", "WARNING", "UPSTREAM_QUOTA_EXHAUSTED"),
        ("context_length_exceeded", "INFO", "UPSTREAM_CONTEXT_LENGTH_EXCEEDED"),
        ("odd", "WARNING", None),
    ],
)
async def test_the_reason_of_an_error_in_a_success(
    script: Script, caplog: pytest.LogCaptureFixture, rpc: str, code: str, level: str, mapped: str | None
) -> None:
    caplog.set_level(logging.INFO)
    script.respond_with(error("200 OK", code))
    async with service(script.base_url, upstream={"max_retries": 0}) as chat:
        await outcome(getattr(chat.stub, rpc)(request()))
    (record,) = records(caplog, "call")
    assert (record.levelname, record.reason, record.mapped_reason) == (level, "UPSTREAM_ERROR_BODY", mapped)


async def test_a_redirect_is_logged_without_secrets(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    script.respond_with(http(b"", "307 Temporary", location="https://user:pass@a.example/v1?key=secret"))
    async with service(script.base_url) as chat:
        await outcome(chat.stub.CreateChatCompletion(request(), metadata=[("x-request-id", "mine")]))
    (record,) = records(caplog, "upstream_redirects")
    assert (record.request_id, record.location) == ("mine", "https://a.example/v1")


@pytest.mark.parametrize("rpc", RPCS)
async def test_severity_of_calls_that_their_caller_or_the_service_ends(
    script: Script, caplog: pytest.LogCaptureFixture, rpc: str
) -> None:
    async def silence(exchange: Exchange) -> None:
        await exchange.closed_by_peer()

    caplog.set_level(logging.INFO)
    script.respond_with(silence)
    async with service(script.base_url, limits={"max_in_flight": 1}) as chat:
        await outcome(getattr(chat.stub, rpc)(request(), timeout=0.3))
        call = getattr(chat.stub, rpc)(request())
        await chat.wait_for(1, "chatrpc_rpcs_in_flight")
        rejected = await outcome(getattr(chat.stub, rpc)(request()))
        assert rejected.reason == "IN_FLIGHT_LIMIT"
        call.cancel()
        await chat.wait_for(0, "chatrpc_rpcs_in_flight")
        await chat.wait_for(1, "grpc_server_handled_total", grpc_code="Canceled")
    shown = {record.code: record.levelname for record in records(caplog, "call")}
    assert shown == {"DeadlineExceeded": "INFO", "ResourceExhausted": "WARNING", "Canceled": "INFO"}


def test_each_reason_has_a_party_at_fault() -> None:
    assert set(CODES) >= CALLERS_REASONS
    assert {Reason.INTERNAL, Reason.UPSTREAM_UNREACHABLE, Reason.SERVER_DRAINING}.isdisjoint(CALLERS_REASONS)


@pytest.mark.parametrize("engine", ["builtin", "httpx"])
@pytest.mark.parametrize("rpc", RPCS)
async def test_an_unreachable_upstream_is_one_line_per_call(
    caplog: pytest.LogCaptureFixture, rpc: str, engine: str
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with service(f"{address}/v1", upstream={"name": "main", "http_client": engine, "max_retries": 2}) as chat:
            for request_id in ("one", "two"):
                await outcome(getattr(chat.stub, rpc)(request(), metadata=[("x-request-id", request_id)]))
    lines = [(line.request_id, line.upstream, line.address) for line in records(caplog, "upstream_connect_failed")]
    assert lines == [("one", "main", address), ("two", "main", address)]


@pytest.mark.parametrize("engine", ["builtin", "httpx"])
async def test_a_lost_connection_is_one_line_per_call(
    script: Script, caplog: pytest.LogCaptureFixture, engine: str
) -> None:
    async def reset(exchange: Exchange) -> None:
        exchange.reset()

    script.respond_with(reset)
    async with service(script.base_url, upstream={"http_client": engine, "max_retries": 2}) as chat:
        await outcome(chat.stub.CreateChatCompletion(request(), metadata=[("x-request-id", "one")]))
    (line,) = records(caplog, "upstream_connection_lost")
    assert (line.request_id, f"{line.address}/v1") == ("one", script.base_url)
