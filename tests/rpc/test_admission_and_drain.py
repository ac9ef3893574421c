"""The limit of calls in flight, and graceful drain."""

import asyncio
import logging
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatrpc_echo import Echo
from support import Service, collect, failure, request, service

Code = grpc.StatusCode
Health = health_pb2.HealthCheckResponse


async def test_calls_over_the_limit_are_rejected_at_once(echo: Echo) -> None:
    async with service(echo.base_url, limits={"max_in_flight": 2}) as chat:
        held = [chat.stub.CreateChatCompletionStream(request(model="echo:gap=60")) for _ in range(2)]
        for call in held:
            await call.read()
        failed = await failure(chat.stub.CreateChatCompletion(request()))
        assert (failed.code, failed.reason) == (Code.RESOURCE_EXHAUSTED, "IN_FLIGHT_LIMIT")
        assert failed.details["RetryInfo"].retry_delay.ToNanoseconds() > 0
        assert chat.value("chatrpc_admission_rejected_total", reason="in_flight") == 1
        assert len(echo.requests) == 2
        health = await health_pb2_grpc.HealthStub(chat.channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == Health.SERVING, "health checks do not count"
        held.pop().cancel()
        async with asyncio.timeout(5):
            while chat.value("chatrpc_rpcs_in_flight") > 1:
                await asyncio.sleep(0.005)
        assert (await chat.stub.CreateChatCompletion(request())).choices, "one call fits again"
        held.pop().cancel()


async def test_drain_lets_calls_finish(echo: Echo) -> None:
    async with service(echo.base_url, drain={"grace_seconds": 30}) as chat:
        stream = chat.stub.CreateChatCompletionStream(request(model="echo:pieces=5,pace=0.05"))
        await stream.read()
        watch = _watch(chat)
        assert (await watch.read()).status == Health.SERVING
        draining = asyncio.create_task(chat.server.drain())
        assert (await watch.read()).status == Health.NOT_SERVING
        text = ""
        while (chunk := await stream.read()) is not grpc.aio.EOF:
            text += "".join(choice.delta.content for choice in chunk.choices)
        assert text.endswith("5")
        async with asyncio.timeout(5):  # although the watch is still open
            await draining
        assert await stream.code() is Code.OK


async def test_the_log_reports_the_drain_after_health_and_metric(
    echo: Echo, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(echo.base_url) as chat:
        seen = []

        def look(_: logging.LogRecord) -> bool:
            seen.append((chat.value("chatrpc_draining"), chat.server.health._status("readiness")))
            return True

        caplog.set_level(logging.INFO)
        monkeypatch.setattr(logging.getLogger("chatrpc.server"), "filters", [look])
        await chat.server.drain()
        assert seen[0] == (1.0, Health.NOT_SERVING)


async def test_calls_that_outlast_the_grace_are_cancelled(echo: Echo) -> None:
    async with service(echo.base_url, drain={"grace_seconds": 0.2}) as chat:
        calls = [
            chat.stub.CreateChatCompletionStream(request("a b c", "echo:gap=60")),
            chat.stub.CreateChatCompletion(request(model="echo:delay=60")),
        ]
        failing = [asyncio.create_task(failure(call)) for call in calls]
        await echo.arrived(2)
        await chat.server.drain()
        for failed in await asyncio.gather(*failing):
            assert (failed.code, failed.reason) == (Code.UNAVAILABLE, "SERVER_DRAINING")
            assert "RetryInfo" in failed.details
        assert chat.value("chatrpc_streams_ended_total", outcome="drain") == 1
        for received in echo.requests:
            await received.disconnected.wait()


async def test_a_call_just_before_the_stop_has_the_whole_grace(echo: Echo) -> None:
    async with service(echo.base_url, drain={"delay_seconds": 0, "grace_seconds": 30}) as chat:
        await chat.stub.CreateChatCompletion(request())  # connects; nothing stays in flight
        draining = asyncio.create_task(chat.server.drain())
        calls = [chat.stub.CreateChatCompletionStream(request(model="echo:pieces=6,pace=0.5")) for _ in range(5)]
        outcomes = await asyncio.gather(*map(collect, calls), return_exceptions=True)
        # A call can be too late and fail, but only before its request reaches the upstream.
        completed = [each for each in outcomes if not isinstance(each, grpc.aio.AioRpcError)]
        assert len(completed) == len(echo.requests) - 1
        await draining


async def test_drain_accepts_calls_during_its_delay(echo: Echo) -> None:
    async with service(echo.base_url, drain={"delay_seconds": 0.5}) as chat:
        watch = _watch(chat)
        await watch.read()
        draining = asyncio.create_task(chat.server.drain())
        assert (await watch.read()).status == Health.NOT_SERVING
        assert await collect(chat.stub.CreateChatCompletionStream(request()))
        await draining
        failed = await failure(chat.stub.CreateChatCompletion(request()))
        assert failed.code is Code.UNAVAILABLE


def _watch(chat: Service) -> Any:
    return health_pb2_grpc.HealthStub(chat.channel).Watch(health_pb2.HealthCheckRequest())
