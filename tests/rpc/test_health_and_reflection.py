"""grpc.health.v1 and grpc.reflection."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from chatrpc_echo import Echo
from support import Service, failure, service

Status = health_pb2.HealthCheckResponse
CHAT = "chatrpc.v1.ChatCompletionService"


@pytest.fixture
def health(chat: Service) -> Any:
    return health_pb2_grpc.HealthStub(chat.channel)


@pytest.mark.parametrize(
    ("name", "serving", "stopping"),
    [
        ("", Status.SERVING, Status.NOT_SERVING),
        (CHAT, Status.SERVING, Status.NOT_SERVING),
        ("readiness", Status.SERVING, Status.NOT_SERVING),
        ("liveness", Status.SERVING, Status.SERVING),
    ],
)
async def test_check(chat: Service, health: Any, name: str, serving: int, stopping: int) -> None:
    asked = health_pb2.HealthCheckRequest(service=name)
    assert (await health.Check(asked)).status == serving
    chat.server.health.set_serving(False)
    assert (await health.Check(asked)).status == stopping


async def test_unknown_name(health: Any) -> None:
    failed = await failure(health.Check(health_pb2.HealthCheckRequest(service="nope")))
    assert failed.code is grpc.StatusCode.NOT_FOUND
    assert CHAT in failed.message
    watch = health.Watch(health_pb2.HealthCheckRequest(service="nope"))
    assert (await watch.read()).status == Status.SERVICE_UNKNOWN
    watch.cancel()


async def test_list(health: Any) -> None:
    listed = await health.List(health_pb2.HealthListRequest())
    assert {name: response.status for name, response in listed.statuses.items()} == dict.fromkeys(
        ["", CHAT, "readiness", "liveness"], Status.SERVING
    )


async def test_all_watchers_are_notified_after_one_has_left(chat: Service, health: Any) -> None:
    """grpcio's own servicer fails this test (grpc/grpc#43403)."""
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
    for watch in watches:
        assert (await watch.read()).status == Status.SERVING
    watches.pop().cancel()
    async with asyncio.timeout(5):
        for serving, status in [(False, Status.NOT_SERVING), (True, Status.SERVING)]:
            chat.server.health.set_serving(serving)
            for watch in watches:
                assert (await watch.read()).status == status


async def test_a_closed_watch_has_sent_the_last_state(chat: Service, health: Any) -> None:
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == Status.SERVING
    chat.server.health.set_serving(False)
    chat.server.health.close_watches()
    assert (await watch.read()).status == Status.NOT_SERVING
    assert await watch.read() is grpc.aio.EOF


REQUEST, RESPONSE = reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse
VERSIONS = ("v1", "v1alpha")


async def _reflect(chat: Service, version: str, **request: str) -> reflection_pb2.ServerReflectionResponse:
    method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    stub = chat.channel.stream_stream(method, REQUEST.SerializeToString, RESPONSE.FromString)
    response: reflection_pb2.ServerReflectionResponse = await stub(iter([REQUEST(**request)])).read()
    return response


def _files(response: reflection_pb2.ServerReflectionResponse) -> list[str]:
    files = response.file_descriptor_response.file_descriptor_proto
    return [descriptor_pb2.FileDescriptorProto.FromString(data).name for data in files]


@pytest.fixture
async def reflecting(echo: Echo) -> AsyncIterator[Service]:
    async with service(echo.base_url, reflection=True) as running:
        yield running


@pytest.mark.parametrize("version", VERSIONS)
async def test_reflection_is_off_by_default(chat: Service, version: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await _reflect(chat, version, list_services="")
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("version", VERSIONS)
async def test_reflection(reflecting: Service, version: str) -> None:
    listed = await _reflect(reflecting, version, list_services="")
    names = {f"grpc.reflection.{each}.ServerReflection" for each in VERSIONS}
    assert {each.name for each in listed.list_services_response.service} == {CHAT, "grpc.health.v1.Health", *names}
    for symbol, file in [
        (CHAT, "chatrpc/v1/chat_service.proto"),
        (f"{CHAT}.CreateChatCompletion", "chatrpc/v1/chat_service.proto"),
        (f"{CHAT}.CreateChatCompletionStream", "chatrpc/v1/chat_service.proto"),
        ("chatrpc.v1.Usage", "chatrpc/v1/chat_response.proto"),
        ("chatrpc.v1.Usage.prompt_tokens", "chatrpc/v1/chat_response.proto"),
        ("grpc.health.v1.Health.Check", "grpc_health/v1/health.proto"),
        ("grpc.reflection.v1.ServerReflection", "grpc/reflection/v1/reflection.proto"),
        ("grpc.reflection.v1.ServerReflection.ServerReflectionInfo", "grpc/reflection/v1/reflection.proto"),
        ("grpc.reflection.v1alpha.ServerReflection", "grpc_reflection/v1alpha/reflection.proto"),
    ]:
        found = _files(await _reflect(reflecting, version, file_containing_symbol=symbol))
        assert file.rpartition("/")[2] in {name.rpartition("/")[2] for name in found}, symbol
        assert file in found or not file.startswith("chatrpc"), symbol


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("symbol", ["", "nope", "chatrpc.v1.Nope", f"{CHAT}.Nope", f"{CHAT}.", f"{CHAT}.A.B", ".", "é"])
async def test_reflection_of_an_unknown_symbol(reflecting: Service, version: str, symbol: str) -> None:
    response = await _reflect(reflecting, version, file_containing_symbol=symbol)
    assert response.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
