"""grpc.health.v1 and grpc.reflection."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

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


async def _listed(chat: Service) -> list[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(chat.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    return [service.name for service in (await call.read()).list_services_response.service]


async def test_reflection_is_off_by_default(chat: Service, echo: Echo) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await _listed(chat)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with service(echo.base_url, reflection=True) as reflecting:
        assert {CHAT, "grpc.health.v1.Health"} <= set(await _listed(reflecting))
