"""Requests that never become complete: they have a time limit, count as calls, and hold bounded memory."""

import asyncio
import itertools
import logging
from contextlib import suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatrpc_echo import Echo
from chatrpc_server.process import memory
from chatrpc_server.rpc.completion import Completed
from chatrpc_server.settings import Address
from support import ANY_PORT, Service, failure, http2, outcome, request, service
from support.flow_control import Caller, calling
from support.process import ANY_PORTS, running
from support.resources import peak_mebibytes, resident_mebibytes

CHAT = "/chatrpc.v1.ChatCompletionService/CreateChatCompletion"
HEALTH = "/grpc.health.v1.Health"
Code = grpc.StatusCode


def _silent(channel: grpc.aio.Channel, method: str) -> Any:
    """Start a call that sends no message and leaves its input open."""
    return channel.stream_stream(method)(timeout=60)


@pytest.mark.parametrize("method", [CHAT, f"{CHAT}Stream"])
async def test_a_request_has_a_time_limit(echo: Echo, method: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "chatrpc.access")
    async with service(echo.base_url, limits={"receive_timeout_seconds": 0.3}) as chat:
        call = asyncio.create_task(failure(_silent(chat.channel, method)))
        await chat.wait_for(1, "chatrpc_rpcs_in_flight")
        failed = await call
        assert (failed.code, failed.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        assert failed.message == "the request did not arrive within limits.receive_timeout_seconds, which is 0.3 s"
        await chat.wait_for(1, "grpc_server_handled_total", grpc_code="DeadlineExceeded")
        assert chat.value("grpc_server_msg_received_total") == 0
        assert not echo.requests
    (line,) = [record for record in caplog.records if record.name == "chatrpc.access"]
    assert (vars(line)["code"], vars(line)["reason"]) == ("DeadlineExceeded", "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("where", ["listen", "health_listen"])
async def test_a_health_check_has_a_time_limit(echo: Echo, where: str) -> None:
    limits = {"receive_timeout_seconds": 0.3}
    async with service(echo.base_url, limits=limits, health_listen=ANY_PORT, reflection=True) as chat:
        methods = [f"{HEALTH}/Check", f"{HEALTH}/Watch"]
        if where == "listen":
            methods.append("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        address = chat.server.address if where == "listen" else chat.server.health_address
        async with grpc.aio.insecure_channel(str(address)) as channel:
            for failed in await asyncio.gather(*(outcome(_silent(channel, method)) for method in methods)):
                assert failed.code is Code.DEADLINE_EXCEEDED
                assert "limits.receive_timeout_seconds" in failed.message


async def test_the_callers_deadline_counts_too(echo: Echo) -> None:
    async with service(echo.base_url, limits={"default_deadline_seconds": 0.3}) as chat:
        failed = await failure(chat.channel.stream_unary(CHAT)())  # type: ignore[operator]
        assert (failed.code, failed.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        assert failed.message == "the deadline expired before the request had arrived"


@pytest.mark.parametrize("method", [CHAT, f"{CHAT}Stream", f"{HEALTH}/Check", f"{HEALTH}/Watch"])
async def test_a_call_without_a_message_is_invalid(chat: Service, method: str) -> None:
    call: Any = chat.channel.stream_stream(method)(timeout=60)
    await call.done_writing()
    failed = await outcome(call)
    assert (failed.code, failed.message) == (Code.INVALID_ARGUMENT, "request: is missing; send one message")
    if method.startswith(CHAT):
        await chat.wait_for(1, "grpc_server_handled_total", grpc_code="InvalidArgument")


@pytest.mark.parametrize("method", [CHAT, f"{CHAT}Stream"])
async def test_a_second_message_is_ignored(chat: Service, method: str) -> None:
    call: Any = chat.channel.stream_stream(method)(timeout=60)
    for text in ("one", "two"):
        with suppress(asyncio.InvalidStateError):  # the response can be complete before the second message
            await call.write(request(text).SerializeToString())
    assert (await outcome(call)).code is Code.OK


async def test_a_cancelled_request_counts_as_cancelled(chat: Service) -> None:
    async with calling(chat.server.address) as caller:
        stream = await caller.start()
        await caller.send(stream, http2.message(b"", length=1000) + b"x" * 100)
        await chat.wait_for(1, "chatrpc_rpcs_in_flight")
        await caller.reset(stream)
        await chat.wait_for(1, "grpc_server_handled_total", grpc_code="Canceled")
        assert chat.value("chatrpc_rpcs_in_flight") == 0


async def test_a_drain_ends_half_sent_requests(echo: Echo) -> None:
    async with service(echo.base_url, drain={"grace_seconds": 0.2}) as chat:
        call = asyncio.create_task(failure(_silent(chat.channel, CHAT)))
        await chat.wait_for(1, "chatrpc_rpcs_in_flight")
        await chat.server.drain()
        assert (await call).reason == "SERVER_DRAINING"


async def _half_send(caller: Caller, count: int, size: int) -> "dict[int, asyncio.Task[None]]":
    """Start calls whose messages lack their last byte."""
    part = http2.message(b"", length=size) + bytes(size - 1)
    streams = [await caller.start() for _ in range(count)]
    return {stream: asyncio.create_task(caller.send(stream, part)) for stream in streams}


@pytest.fixture
def growing_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocated memory grows at each look, because in this process other tests free memory meanwhile."""
    allocated = itertools.count(0, 64 << 20)
    monkeypatch.setattr(memory, "allocated_bytes", lambda: next(allocated))


@pytest.mark.usefixtures("growing_memory")
async def test_slow_requests_are_limited(echo: Echo) -> None:
    """Four of them could fill the memory, so the oldest others fail, and a normal call succeeds meanwhile."""
    size = 1 << 20
    limits = {"max_message_bytes": size, "max_bytes_in_flight": 4 * size}
    async with service(echo.base_url, limits=limits) as chat, calling(chat.server.address) as caller:
        sending = await _half_send(caller, 20, size)
        await chat.wait_for(16, "chatrpc_admission_rejected_total", reason="receiving")
        assert (await chat.stub.CreateChatCompletion(request())).choices
        await caller.all_ended(set(list(sending)[:16]))
        for task in sending.values():
            task.cancel()


async def test_slow_requests_that_hold_little_memory_succeed(echo: Echo) -> None:
    """Callers far away need several round trips for a small request."""
    limits = {"max_message_bytes": 16 << 20, "max_bytes_in_flight": 32 << 20}
    async with service(echo.base_url, limits=limits) as chat:
        calls: list[Any] = [chat.channel.stream_stream(CHAT)(timeout=60) for _ in range(40)]
        await chat.wait_for(40, "chatrpc_rpcs_in_flight")
        receiver = chat.server._receiver
        start = receiver._tick
        async with asyncio.timeout(30):
            while receiver._tick < start + 5:
                await asyncio.sleep(0.01)
        for call in calls:
            await call.write(request().SerializeToString())
            await call.done_writing()
        assert {(await outcome(call)).code for call in calls} == {Code.OK}


async def test_slow_requests_take_half_of_the_calls_in_flight(echo: Echo) -> None:
    async with service(echo.base_url, limits={"max_in_flight": 8}) as chat:
        calls = [asyncio.create_task(failure(_silent(chat.channel, CHAT))) for _ in range(8)]
        await chat.wait_for(4, "chatrpc_admission_rejected_total", reason="receiving")
        assert (await chat.stub.CreateChatCompletion(request())).choices
        async with asyncio.timeout(30):
            while sum(call.done() for call in calls) < 4:
                await asyncio.sleep(0.01)
        assert {call.result().reason for call in calls if call.done()} == {"IN_FLIGHT_LIMIT"}
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


async def test_a_new_call_takes_the_place_of_a_slow_request(echo: Echo) -> None:
    async with service(echo.base_url, limits={"max_in_flight": 1}) as chat:
        slow = asyncio.create_task(failure(_silent(chat.channel, CHAT)))
        await chat.wait_for(1, "chatrpc_rpcs_in_flight")
        async with asyncio.timeout(30):
            while (ended := await outcome(chat.stub.CreateChatCompletion(request()))).code is not Code.OK:
                assert ended.reason == "IN_FLIGHT_LIMIT", "until the first request is slow"
        assert (await slow).reason == "IN_FLIGHT_LIMIT"
        assert chat.value("chatrpc_admission_rejected_total", reason="receiving") == 1


@pytest.mark.usefixtures("growing_memory")
async def test_the_words_of_a_slow_request_that_fails(echo: Echo) -> None:
    limits = {"max_message_bytes": 1 << 20, "max_bytes_in_flight": 1 << 20}
    async with service(echo.base_url, limits=limits) as chat:
        oldest = asyncio.create_task(failure(_silent(chat.channel, CHAT)))
        await chat.wait_for(1, "chatrpc_rpcs_in_flight")
        call = _silent(chat.channel, CHAT)
        failed = await oldest
        assert (failed.code, failed.reason) == (Code.RESOURCE_EXHAUSTED, "IN_FLIGHT_LIMIT")
        assert "limits.max_bytes_in_flight" in failed.message
        assert failed.details["RetryInfo"].retry_delay.ToNanoseconds() > 0
        call.cancel()


async def test_an_operation_outlives_a_cancellation() -> None:
    """gRPC frees a message only at the end of the operation that receives it."""
    arrived: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    finished = asyncio.Event()

    async def operation() -> int:
        try:
            return await arrived
        finally:
            finished.set()

    async def receive() -> int:
        return await Completed(operation())

    waiting = asyncio.create_task(receive())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not finished.is_set()
    arrived.set_result(1)
    async with asyncio.timeout(30):
        await finished.wait()


@pytest.mark.parametrize("fails", [False, True])
async def test_an_operation_has_its_result(fails: bool) -> None:
    arrived: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def operation() -> int:
        with suppress(ValueError):
            return await arrived
        return 2

    if fails:
        asyncio.get_running_loop().call_soon(arrived.set_exception, ValueError())
    else:
        asyncio.get_running_loop().call_soon(arrived.set_result, 1)
    assert await Completed(operation()) == (2 if fails else 1)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_memory_of_half_sent_requests(echo: Echo) -> None:
    """100 requests of 20 MiB, twice. Without a limit the process holds 2 GiB, and a caller can repeat that."""
    size, count = 20 << 20, 100
    command = ["serve", *ANY_PORTS, f"--upstream.base-url={echo.base_url}", "--limits.receive-timeout-seconds=5"]
    with running(*command, OPENAI_API_KEY="x") as process:
        address = Address.parse(process.log("serving")["listen"])
        pid = process.popen.pid
        before = resident_mebibytes(pid)
        async with grpc.aio.insecure_channel(str(address)) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for _ in range(2):
                async with calling(address) as caller:
                    sending = await _half_send(caller, count, size)
                    ended = asyncio.create_task(caller.all_ended(set(sending)))
                    while not ended.done():
                        await health.Check(health_pb2.HealthCheckRequest(), timeout=60)
                        await asyncio.wait({ended}, timeout=0.1)
                    await ended
                    for task in sending.values():
                        task.cancel()
        peak = peak_mebibytes(pid) - before
        print(f"half-sent requests: {peak:.0f} MiB more at the peak, {resident_mebibytes(pid) - before:.0f} after")
        # 6 of 20 MiB, and the bytes that arrived before the others were found to be slow.
        assert peak < 900
