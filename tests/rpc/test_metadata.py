"""Metadata and headers, in both directions."""

import asyncio

import grpc
import pytest

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from support import Script, Service, collect, failure, http, request, service, sse

RESPONSE = b'{"choices": []}'


async def test_request_id_and_trace_context_are_forwarded(chat: Service, echo: Echo) -> None:
    sent = [("x-request-id", "id-1"), ("traceparent", "00-abc-def-01"), ("tracestate", "a=b")]
    call = chat.stub.CreateChatCompletion(request(), metadata=[*sent, ("authorization", "Bearer mine"), ("x-foo", "1")])
    assert dict(await call.initial_metadata())["x-request-id"] == "id-1"
    headers = echo.requests[0].headers
    assert [(name, headers[name]) for name, _ in sent] == sent
    assert "authorization" not in headers, "the caller's credentials must not be forwarded"
    assert "x-foo" not in headers, "only a closed list is forwarded"


async def test_ignored_credentials_are_logged_once(chat: Service, caplog: pytest.LogCaptureFixture) -> None:
    for key in ("x-foo", "authorization", "x-api-key"):
        await chat.stub.CreateChatCompletion(request(), metadata=[(key, "Bearer mine")])
    logged = [record for record in caplog.records if getattr(record, "event", "") == "credentials_ignored"]
    assert len(logged) == 1
    assert "mine" not in caplog.text


@pytest.mark.parametrize("given", ["", "x" * 129], ids=["none", "too-long"])
async def test_a_missing_request_id_is_generated(chat: Service, echo: Echo, given: str) -> None:
    call = chat.stub.CreateChatCompletion(request(), metadata=[("x-request-id", given)] if given else None)
    made = dict(await call.initial_metadata())["x-request-id"]
    assert len(made) == 32
    assert echo.requests[0].headers["x-request-id"] == made


@pytest.mark.parametrize("rpc", ["CreateChatCompletion", "CreateChatCompletionStream"])
async def test_the_upstreams_rate_limits_reach_the_caller(script: Script, rpc: str) -> None:
    headers = {"x_ratelimit_remaining_requests": "9", "x_request_id": "theirs", "x_secret": "1", "set_cookie": "a=b"}
    body = b'data: {"choices": [{"index": 0, "finish_reason": "stop"}]}\n\n' if rpc.endswith("Stream") else RESPONSE
    script.respond_with(
        http(body, content_type="text/event-stream" if rpc.endswith("Stream") else "application/json", **headers)
    )
    async with service(script.base_url) as chat:
        call = getattr(chat.stub, rpc)(request(), metadata=[("x-request-id", "ours")])
        metadata = dict(await call.initial_metadata())
    shown = {key: value for key, value in metadata.items() if key.startswith("x-")}
    assert shown == {"x-request-id": "ours", "x-ratelimit-remaining-requests": "9", "x-upstream-request-id": "theirs"}


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
async def test_other_names_of_the_upstreams_headers(script: Script, status: str) -> None:
    headers = {"apim_request_id": "theirs", "cf_ray": "ray", "anthropic_ratelimit_tokens_remaining": "7"}
    script.respond_with(http(RESPONSE, status, **headers, ratelimit='"default";r=50'))
    async with service(script.base_url) as chat:
        call = chat.stub.CreateChatCompletion(request())
        if status == "200 OK":
            metadata = dict(await call.initial_metadata())
        else:
            failed = await failure(call)
            metadata = failed.trailers
            assert failed.details["RequestInfo"].request_id == "theirs"
        await chat.wait_for(7, "chatrpc_upstream_ratelimit_remaining", kind="tokens")
    assert metadata["x-upstream-request-id"] == "theirs"
    assert metadata["anthropic-ratelimit-tokens-remaining"] == "7"
    assert metadata["ratelimit"] == '"default";r=50'


@pytest.mark.parametrize("rpc", ["CreateChatCompletion", "CreateChatCompletionStream"])
@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-ratelimit-foo-bin", "abc"),
        ("x-ratelimit-foo!bar", "1"),
        ("x-ratelimit-" + "x" * 9000, "1"),
        ("x-ratelimit-foo", "é"),
        ("x-ratelimit-foo", "1" * 9000),
    ],
    ids=["bin", "no-token", "long-name", "not-ascii", "long-value"],
)
async def test_invalid_headers_of_the_upstream_are_dropped(
    script: Script, rpc: str, status: str, name: str, value: str
) -> None:
    body = b'data: {"choices": [{"index": 0, "finish_reason": "stop"}]}\n\n' if rpc.endswith("Stream") else RESPONSE
    media_type = "text/event-stream" if rpc.endswith("Stream") else "application/json"
    script.respond_with(http(body, status, media_type, **{name: value}))
    async with service(script.base_url) as chat, asyncio.timeout(5):
        call = getattr(chat.stub, rpc)(request(), metadata=[("x-request-id", "ours")])
        if status == "200 OK":
            assert await (collect(call) if rpc.endswith("Stream") else call)
            assert dict(await call.initial_metadata())["x-request-id"] == "ours"
        else:
            assert (await failure(call)).reason == "UPSTREAM_INVALID_REQUEST"


@pytest.mark.parametrize("engine", ["builtin", "httpx"])
async def test_invalid_metadata_of_the_caller_is_dropped(echo: Echo, engine: str) -> None:
    metadata = [(name, " padded ") for name in ("x-request-id", "traceparent", "tracestate")]
    async with service(echo.base_url, upstream={"http_client": engine, "max_retries": 0}) as chat:
        call = chat.stub.CreateChatCompletion(request(), metadata=metadata)
        assert len(dict(await call.initial_metadata())["x-request-id"]) == 32
        assert await call
    assert not {"traceparent", "tracestate"} & set(echo.requests[0].headers)


async def test_a_stream_without_chunks_has_it_too(script: Script) -> None:
    """Asked by a synchronous client: grpc.aio's loses initial metadata that arrive together with the status."""

    def call(target: str) -> tuple[list[object], dict[str, str]]:
        with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
            stub = ChatCompletionServiceStub(channel)
            stream = stub.CreateChatCompletionStream(request(), metadata=[("x-request-id", "ours")], timeout=30)
            return list(stream), dict(stream.initial_metadata())

    script.respond_with(sse())
    async with service(script.base_url) as chat:
        chunks, metadata = await asyncio.to_thread(call, str(chat.server.address))
    assert (chunks, metadata["x-request-id"]) == ([], "ours")


async def test_headers_of_a_failed_attempt_are_dropped(script: Script) -> None:
    script.respond_with(http(b"{}", "503 x", x_request_id="first"), b"what?\r\n\r\n")
    async with service(script.base_url, upstream={"max_retries": 1}) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request(), metadata=[("x-request-id", "ours")]))
    assert failed.details["RequestInfo"].request_id == "ours"
    assert "x-upstream-request-id" not in failed.trailers


async def test_errors_carry_it_in_the_trailers(script: Script) -> None:
    script.respond_with(http(b"{}", "400 Bad Request", x_ratelimit_remaining_tokens="0"))
    async with service(script.base_url) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request(), metadata=[("x-request-id", "ours")]))
    assert failed.trailers["x-request-id"] == "ours"
    assert failed.trailers["x-ratelimit-remaining-tokens"] == "0"


async def test_headers_towards_the_upstream(script: Script) -> None:
    script.respond_with(http(RESPONSE))
    upstream = {"api_key": "sk-x", "organization": "org-1", "project": "proj-1"}
    async with service(script.base_url, upstream=upstream) as chat:
        await chat.stub.CreateChatCompletion(request())
    head = script.exchanges[0].head.decode().lower().splitlines()
    assert head[0] == "post /v1/chat/completions http/1.1"
    for line in (
        "content-type: application/json",
        "accept: application/json, text/event-stream",
        "accept-encoding: identity",
        "authorization: bearer sk-x",
        "openai-organization: org-1",
        "openai-project: proj-1",
    ):
        assert line in head
    assert not any(line.startswith("cookie") for line in head)
    assert len([line for line in head if line.startswith("user-agent: chatrpc-server/")]) == 1


async def test_cookies_are_not_kept(script: Script) -> None:
    script.respond_with(http(RESPONSE, set_cookie="session=1"))
    async with service(script.base_url) as chat:
        for _ in range(2):
            await chat.stub.CreateChatCompletion(request())
    assert b"session=1" not in script.exchanges[1].head


async def test_a_proxy_of_the_environment_is_not_used(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with service(echo.base_url) as chat:
        assert (await chat.stub.CreateChatCompletion(request())).choices


async def test_the_proxy_of_the_settings_is_used(script: Script) -> None:
    script.respond_with(http(RESPONSE))
    proxy = script.base_url.removesuffix("/v1")
    async with service("http://model.invalid/v1", upstream={"proxy": proxy}) as chat:
        await chat.stub.CreateChatCompletion(request())
    assert script.exchanges[0].head.startswith(b"POST http://model.invalid/v1/chat/completions ")
