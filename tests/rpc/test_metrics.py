"""The metrics and the access line of a call."""

import asyncio
import logging
import random
from urllib.request import urlopen

import pytest

from chatrpc_echo import Echo
from support import Script, Service, collect, failure, http, request, service, sse

RPC = {"grpc_service": "chatrpc.v1.ChatCompletionService"}
UNARY = {**RPC, "grpc_type": "unary", "grpc_method": "CreateChatCompletion"}
RANDOM_NAMES, CALLERS = 10_000, 50
STREAM = {**RPC, "grpc_type": "server_stream", "grpc_method": "CreateChatCompletionStream"}


async def test_a_call_is_counted(chat: Service) -> None:
    response = await chat.stub.CreateChatCompletion(request())
    chunks = await collect(chat.stub.CreateChatCompletionStream(request(model="echo:pace=0.001")))
    usage, streamed = response.usage, chunks[-1].usage
    for labels in (UNARY, STREAM):
        assert chat.value("grpc_server_started_total", **labels) == 1
        assert chat.value("grpc_server_handled_total", **labels, grpc_code="OK") == 1
        assert chat.value("grpc_server_handling_seconds_count", **labels) == 1
        assert chat.value("grpc_server_msg_received_total", **labels) == 1
    assert chat.value("grpc_server_msg_sent_total", **STREAM) == len(chunks)
    assert chat.value("chatrpc_rpcs_in_flight") == 0
    assert chat.value("gen_ai_client_operation_duration_seconds_count", error_type="") == 2
    assert chat.value("gen_ai_client_operation_time_to_first_chunk_seconds_count") == 1
    assert chat.value("chatrpc_streams_ended_total", outcome="complete") == 1
    model = {"gen_ai_request_model": "echo"}
    assert chat.value("chatrpc_tokens_total", **model, gen_ai_token_type="input") == usage.prompt_tokens
    assert chat.value("chatrpc_tokens_total", gen_ai_token_type="output") == (
        usage.completion_tokens + streamed.completion_tokens
    )


async def test_usage_in_every_chunk_is_counted_once(script: Script) -> None:
    choice = b'{"choices": [{"index": 0, "delta": {"content": "a"}}], '
    chunks = [choice + b'"usage": {"prompt_tokens": 3, "completion_tokens": %d}}' % n for n in (1, 2, 3)]
    script.respond_with(sse(*chunks))
    async with service(script.base_url) as chat:
        await collect(chat.stub.CreateChatCompletionStream(request()))
        assert chat.value("chatrpc_tokens_total", gen_ai_token_type="input") == 3
        assert chat.value("chatrpc_tokens_total", gen_ai_token_type="output") == 3


@pytest.mark.timeout(180)
async def test_callers_cannot_create_series(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    """By no name of a model, method or trace."""
    caplog.set_level(logging.ERROR)
    script.respond_with(http(b'{"error": {"message": "none such", "code": "model_not_found"}}', "404 Not Found"))
    async with service(script.base_url) as chat:
        await _makes_no_series(chat)


async def _makes_no_series(chat: Service) -> None:
    unknown = chat.channel.unary_unary("/chatrpc.v1.ChatCompletionService/Nothing")

    async def calls(numbers: range) -> None:
        for number in numbers:
            name = f"made-up-{random.getrandbits(64):x}"
            method = (chat.stub.CreateChatCompletion, chat.stub.CreateChatCompletionStream)[number % 2]
            trace = f"00-{random.getrandbits(127) + 1:032x}-{1:016x}-01"
            await method(request(model=name), metadata=[("traceparent", trace)]).code()
            if number < CALLERS:
                await failure(chat.channel.unary_unary(f"/{name}/{name}")(b""))

    await calls(range(2 * CALLERS))
    await failure(unknown(b""))
    before = _series(chat)
    async with asyncio.TaskGroup() as group:
        for first in range(CALLERS):
            group.create_task(calls(range(2 * CALLERS + first, RANDOM_NAMES, CALLERS)))
    assert _series(chat) == before
    assert (
        chat.value("gen_ai_client_operation_duration_seconds_count", error_type="UPSTREAM_MODEL_NOT_FOUND")
        == RANDOM_NAMES
    )
    assert chat.value("grpc_server_handled_total", grpc_code="NotFound") == RANDOM_NAMES
    unknown_rpc = {"grpc_service": "unknown", "grpc_method": "unknown"}
    assert chat.value("grpc_server_started_total", **unknown_rpc) == CALLERS + 1
    assert chat.value("grpc_server_handled_total", **unknown_rpc, grpc_code="Unimplemented") == CALLERS + 1


def _series(chat: Service) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sample.labels.items()))
        for metric in chat.server.metrics.registry.collect()
        for sample in metric.samples
    }


async def test_metrics_are_served_over_http(chat: Service) -> None:
    await chat.stub.CreateChatCompletion(request())
    with urlopen(f"http://{chat.server.metrics_address}/metrics", timeout=5) as response:
        text = response.read().decode()
    for line in (
        'grpc_server_handled_total{grpc_code="OK",grpc_method="CreateChatCompletion",',
        "# TYPE grpc_server_handling_seconds histogram",
        'chatrpc_build_info{grpcio="',
        "process_resident_memory_bytes",
    ):
        assert line in text
    assert "_created" not in text


async def test_one_access_line_per_call(chat: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await chat.stub.CreateChatCompletion(request("the-secret-prompt"), metadata=[("x-request-id", "id-1")])
    await failure(chat.stub.CreateChatCompletionStream(request("the-secret-prompt", "echo:status=400")))
    good, bad = (vars(record) for record in caplog.records if record.name == "chatrpc.access")
    assert {key: good[key] for key in ("request_id", "method", "model", "code", "messages", "attempts")} == {
        "request_id": "id-1",
        "method": "CreateChatCompletion",
        "model": "echo",
        "code": "OK",
        "messages": 1,
        "attempts": 1,
    }
    assert good["output_tokens"] > 0
    assert good["duration_ms"] >= good["first_message_ms"] > 0
    assert (bad["code"], bad["reason"], bad["messages"]) == ("InvalidArgument", "UPSTREAM_INVALID_REQUEST", 0)
    assert not any("secret-prompt" in str(vars(record)) for record in caplog.records)


async def test_a_rejected_key_is_logged_for_the_operator(echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        Echo(api_key="right") as picky,
        service(picky.base_url, upstream={"api_key": "sk-wrong-key-12345"}) as chat,
    ):
        failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert failed.reason == "UPSTREAM_UNAUTHENTICATED"
    assert [record.levelname for record in caplog.records if record.event == "upstream_key_rejected"] == ["ERROR"]
    assert not any("wrong-key" in str(vars(record)) for record in caplog.records)
