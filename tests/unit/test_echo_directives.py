"""The embedded upstream: errors, shapes, times and faults that the model name requests."""

import json
import time
from typing import Any

import aiohttp
import pytest

from chatrpc_echo import DIRECTIVES
from support.echo_caller import INVALID, Caller, calling, deltas, gather, joined, parsed, soon


@pytest.mark.parametrize(
    ("model", "status", "kind", "code", "message"),
    [
        ("echo:status=400", 400, INVALID, None, "Bad Request."),
        ("echo:status=401", 401, INVALID, "invalid_api_key", "Incorrect API key provided"),
        ("echo:status=403", 403, "request_forbidden", "unsupported_country_region_territory", "not supported"),
        ("echo:status=404", 404, INVALID, "model_not_found", "The model `echo:status=404` does not exist"),
        ("echo:status=418", 418, INVALID, None, "Teapot"),
        ("echo:status=429", 429, "requests", "rate_limit_exceeded", "Rate limit reached for `echo:status=429`"),
        ("echo:status=429,code=insufficient_quota", 429, "insufficient_quota", "insufficient_quota", "current quota"),
        ("echo:code=insufficient_quota", 429, "insufficient_quota", "insufficient_quota", "current quota"),
        ("echo:code=context_length_exceeded", 400, INVALID, "context_length_exceeded", "maximum context length"),
        ("echo:code=odd_one", 400, INVALID, "odd_one", "Bad Request."),
        ("echo:status=500", 500, "server_error", None, "The server had an error"),
        ("echo:status=502,code=502", 502, "server_error", 502, "Bad Gateway."),
        ("echo:status=503,message=Down%2C sorry", 503, "server_error", None, "Down, sorry"),
        ("echo:status=529", 529, "server_error", None, "Status 529."),
        ("gpt-9", 404, INVALID, "model_not_found", "The model `gpt-9` does not exist or you do not have access to it."),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_requested_errors(
    caller: Caller, model: str, status: int, kind: str, code: Any, message: str, stream: bool
) -> None:
    got, body = await caller.unary(model, stream=stream)
    error = body["error"]
    assert (got, error["type"], error["code"], error["param"]) == (status, kind, code, None)
    assert message in error["message"]


async def test_retry_headers(caller: Caller) -> None:
    async with caller.post("echo:status=429,retry_after=2,retry_after_ms=1500") as response:
        assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("2", "1500")


@pytest.mark.parametrize("fault", ["status=503", "truncate=1", "html", "error=0"])
async def test_times_limits_a_fault_for_the_same_model_and_user(caller: Caller, fault: str) -> None:
    model = f"echo:{fault},times=2,pieces=3"
    said = []
    for user in ("a", "b", "a", "a"):
        async with caller.post(model, user=user) as response:
            said.append("1 2 3" in await response.text() and response.status == 200)
    assert said == [False, False, False, True]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("echo:statsu=5", "unknown directive 'statsu'"),
        ("echo:status", "invalid value for directive 'status'"),
        ("echo:status=abc", "invalid value for directive 'status': expected an integer from 400 to 599, got 'abc'"),
        ("echo:status=700", "invalid value for directive 'status'"),
        ("echo:pieces=-1", "invalid value for directive 'pieces'"),
        ("echo:delay=nan", "invalid value for directive 'delay'"),
        ("echo:pace=x", "invalid value for directive 'pace'"),
        ("echo:html=yes", "directive 'html' does not accept a value"),
        ("echo:delay=0,delay=0", "directive 'delay' is given twice"),
    ],
)
async def test_the_error_of_an_invalid_directive_names_it_and_lists_the_valid_ones(
    caller: Caller, model: str, named: str
) -> None:
    status, body = await caller.unary(model)
    assert (status, body["error"]["param"]) == (400, "model")
    assert named in body["error"]["message"]
    assert all(name in body["error"]["message"] for name in DIRECTIVES)


@pytest.mark.parametrize("model", ["echo", "echo-large", "echo:", "echo: pieces=4 , no_done"])
async def test_the_response_has_the_model_name_of_the_request(caller: Caller, model: str) -> None:
    status, body = await caller.unary(model)
    assert (status, body["model"]) == (200, model)


# --- shape, time, faults ---


async def test_pieces_and_size(caller: Caller) -> None:
    assert joined(await caller.stream("echo:pieces=100")) == " ".join(map(str, range(1, 101)))
    assert len(await caller.stream("echo:pieces=100")) == 103
    assert len(await caller.stream("echo:pieces=0")) == 3
    assert (await caller.unary("echo:pieces=5", max_tokens=3))[1]["choices"][0]["message"]["content"] == "1 2 3"
    for model, sizes in {
        "echo:size=100000": [100_000],
        "echo:size=10,pieces=3": [3, 3, 4],
        "echo:size=2,pieces=3": [1, 1],
        "echo:size=0": [],
    }.items():
        assert [len(delta["content"]) for delta in deltas(await caller.stream(model))[1:-1]] == sizes
    assert len((await caller.unary("echo:size=5000"))[1]["choices"][0]["message"]["content"]) == 5000


@pytest.mark.parametrize("stream", [False, True])
async def test_html(caller: Caller, stream: bool) -> None:
    async with caller.post("echo:html", stream=stream) as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert (await response.text()).startswith("<!DOCTYPE html>")


async def test_usage_and_done_can_be_missing_or_rejected(caller: Caller) -> None:
    options = {"include_usage": True}
    assert "usage" not in (await caller.unary("echo:no_usage"))[1]
    events = await caller.stream("echo:no_usage", stream_options=options)
    assert events[-1] == "[DONE]"
    assert all("usage" not in event for event in events[:-1])
    events = await caller.stream("echo:no_done", stream_options=options)
    assert events[-1]["usage"]["total_tokens"] > 0
    status, body = await caller.unary("echo:reject_usage", stream=True, stream_options=options)
    assert (status, body["error"]["param"], body["error"]["type"]) == (400, "stream_options", INVALID)
    assert joined(await caller.stream("echo:reject_usage")) == "You said: hello there"


@pytest.mark.parametrize(
    ("after", "seen"), [(0, None), (1, "You"), (3, "You said: hello"), (99, "You said: hello there")]
)
async def test_stream_truncated_cleanly(caller: Caller, after: int, seen: str | None) -> None:
    events = await caller.stream(f"echo:truncate={after}")
    assert (joined(events) if events else None) == seen
    assert all(event["choices"][0]["finish_reason"] is None for event in events)


@pytest.mark.parametrize(("after", "seen"), [(0, None), (2, "You said:"), (99, "You said: hello there")])
async def test_error_in_the_stream(caller: Caller, after: int, seen: str | None) -> None:
    *events, error = await caller.stream(f"echo:error={after},code=rate_limit_exceeded")
    assert (joined(events) if events else None) == seen
    assert (error["error"]["code"], error["error"]["type"]) == ("rate_limit_exceeded", "requests")


@pytest.mark.parametrize(("after", "seen"), [(0, 0), (1, 2), (3, 4)])
async def test_stream_reset(caller: Caller, after: int, seen: int) -> None:
    received = bytearray()
    async with caller.post(f"echo:reset={after}", stream=True) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientError):
            await gather(response, received)
    assert len(parsed(received) if received else []) == seen
    await soon(caller.echo.requests[0].finished)


async def test_unary_faults(caller: Caller) -> None:
    async with caller.post("echo:truncate=1") as response:
        assert response.status == 200
        with pytest.raises(json.JSONDecodeError):
            await response.json()
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await caller.unary("echo:reset=0")
    async with caller.post("echo:reset=1") as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    status, body = await caller.unary("echo:error=0,code=502")
    assert (status, body["error"]["code"]) == (200, 502)


@pytest.mark.parametrize("stream", [False, True])
async def test_delay_is_before_the_headers_and_first_after_them(caller: Caller, stream: bool) -> None:
    async with caller.post("echo:first=60", stream=stream) as response:
        assert response.status == 200
        response.close()
    start = time.monotonic()
    async with caller.post("echo:delay=0.05,first=0.05", stream=stream) as response:
        assert time.monotonic() - start >= 0.05
        await response.read()
    assert time.monotonic() - start >= 0.1


async def arrivals(caller: Caller, model: str) -> list[float]:
    """Return the arrival of each read of the stream, in seconds since the headers."""
    async with caller.post(model, stream=True) as response:
        start = time.monotonic()
        return [time.monotonic() - start async for _ in response.content.iter_any()]


@pytest.mark.parametrize(("pace_seconds", "model"), [(0.02, "echo:pieces=4"), (60.0, "echo:pieces=4,pace=0.02")])
async def test_the_directive_overrides_the_pace_of_the_constructor(pace_seconds: float, model: str) -> None:
    async with calling(pace_seconds=pace_seconds) as caller:
        assert (await arrivals(caller, model))[-1] >= 0.07


@pytest.mark.parametrize("pieces", [1, 2, 4])
async def test_the_gap_is_kept_in_short_responses(caller: Caller, pieces: int) -> None:
    times = await arrivals(caller, f"echo:pieces={pieces},gap=0.1")
    assert times[-1] >= 0.09
