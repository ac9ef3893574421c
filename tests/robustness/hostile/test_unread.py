"""Responses that their caller does not read: in flight until the deadline, which ends them and frees their memory."""

import asyncio
import gc
from contextlib import suppress
from typing import Any

import grpc
import pytest

from chatrpc_echo import Echo
from chatrpc_server.core.call import Call
from chatrpc_server.settings import Address
from support import Service, failure, http2, outcome, request, service
from support.callers import until
from support.flow_control import Caller, calling
from support.process import ANY_PORTS, running
from support.resources import peak_mebibytes

METHODS = (http2.METHOD, http2.METHOD + b"Stream")
Code = grpc.StatusCode


async def _call(caller: Caller, count: int, model: str = "echo:size=900000", **fields: bytes) -> set[int]:
    """Send requests whose responses the caller does not read; return their streams."""
    streams = set()
    for _ in range(count):
        stream = await caller.start(**fields)
        await caller.send(stream, http2.message(request(model=model).SerializeToString()), end=True)
        streams.add(stream)
    return streams


async def _ended(caller: Caller, streams: set[int], chat: Service) -> None:
    """Wait until the service has ended the calls. grpc.aio keeps the newest call until another one arrives."""
    ended = asyncio.create_task(caller.all_ended(streams))
    while not ended.done():
        await chat.stub.CreateChatCompletion(request())
        await asyncio.wait({ended}, timeout=0.1)
    await ended


async def test_the_deadline_ends_unread_calls(echo: Echo) -> None:
    count = 10
    async with service(echo.base_url, limits={"default_deadline_seconds": 1}) as chat:
        await chat.stub.CreateChatCompletion(request())
        async with calling(chat.server.address, window=0) as caller:
            streams = {stream for path in METHODS for stream in await _call(caller, count // 2, path=path)}
            await chat.wait_for(count, "chatrpc_rpcs_in_flight")
            assert chat.server.admission.in_flight == count
            await chat.wait_for(count, "grpc_server_handled_total", grpc_code="DeadlineExceeded")
            assert chat.value("chatrpc_rpcs_in_flight") == chat.server.admission.in_flight == 0
            await _ended(caller, streams, chat)


async def test_the_callers_deadline_ends_unread_calls(echo: Echo) -> None:
    async with service(echo.base_url) as chat, calling(chat.server.address, window=0) as caller:
        deadline = {"grpc_timeout": b"1S"}
        streams = {stream for path in METHODS for stream in await _call(caller, 5, path=path, **deadline)}
        await chat.wait_for(10, "chatrpc_rpcs_in_flight")
        await caller.all_ended(streams)
        await chat.wait_for(10, "grpc_server_handled_total", grpc_code="DeadlineExceeded")


async def test_a_response_read_late_is_complete(echo: Echo) -> None:
    async with service(echo.base_url) as chat:
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(str(chat.server.address), options=options) as channel:
            call: Any = channel.unary_stream(http2.METHOD.decode())
            call = call(request(model="echo:size=4000000").SerializeToString(), timeout=60)
            await chat.wait_for(1, "chatrpc_rpcs_in_flight")
            assert len(await call.read()) > 4_000_000
            assert await call.code() is Code.OK
            await chat.wait_for(1, "grpc_server_handled_total", grpc_code="OK")


@pytest.mark.parametrize("path", METHODS)
async def test_unread_responses_count_as_bytes_in_flight(echo: Echo, path: bytes) -> None:
    """The window has room for a stream's first chunk, which is small."""
    limits = {"max_message_bytes": 1 << 20, "max_bytes_in_flight": 2 << 20}
    async with service(echo.base_url, limits=limits) as chat, calling(chat.server.address, window=500) as caller:
        unread = await _call(caller, 2, path=path)
        await until(lambda: chat.value("chatrpc_message_bytes_in_flight") > 2 * 900_000, seconds=30)
        failed = await failure(chat.stub.CreateChatCompletion(request(model="echo:size=900000"), timeout=60))
        assert (failed.code, failed.reason) == (Code.RESOURCE_EXHAUSTED, "IN_FLIGHT_LIMIT")
        assert "limits.max_bytes_in_flight, which is 2097152; retry later" in failed.message
        assert failed.details["RetryInfo"].retry_delay.ToNanoseconds() > 0
        assert chat.value("chatrpc_admission_rejected_total", reason="bytes") == 1
        failed = await failure(chat.stub.CreateChatCompletion(request("x" * 500_000), timeout=60))
        assert failed.reason == "IN_FLIGHT_LIMIT"
        assert chat.value("chatrpc_admission_rejected_total", reason="bytes") == 2
        assert (await chat.stub.CreateChatCompletion(request())).choices, "a small call still fits"
        for stream in unread:
            await caller.reset(stream)
        await chat.wait_for(2, "grpc_server_handled_total", grpc_code="Canceled")
        assert (await chat.stub.CreateChatCompletion(request(model="echo:size=900000"))).choices


async def test_failed_calls_leave_no_memory(echo: Echo) -> None:
    """A cycle of references would keep each request until the garbage collector runs, which is rare."""
    invalid = request("x" * 100_000)
    invalid.messages.add()
    async with service(echo.base_url, limits={"receive_timeout_seconds": 0.1}) as chat:
        gc.collect()
        gc.disable()
        try:
            assert (await failure(chat.stub.CreateChatCompletion(invalid))).reason == "INVALID_REQUEST"
            assert (await failure(chat.stub.CreateChatCompletionStream(invalid))).reason == "INVALID_REQUEST"
            silent: Any = chat.channel.stream_unary(http2.METHOD.decode())
            assert (await failure(silent())).reason == "DEADLINE_EXCEEDED"
            cancelled = chat.stub.CreateChatCompletion(request(model="echo:delay=60"))
            await chat.wait_for(1, "chatrpc_rpcs_in_flight")
            cancelled.cancel()
            assert (await outcome(chat.stub.CreateChatCompletion(request()))).code is Code.OK
            async with asyncio.timeout(30):
                while any(isinstance(each, Call) for each in gc.get_objects()):
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_memory_of_unread_responses(echo: Echo) -> None:
    """50 responses of 4 MB, four times. Each round must use the memory of the round before."""
    count, peaks = 50, []
    command = ["serve", *ANY_PORTS, f"--upstream.base-url={echo.base_url}", "--limits.default-deadline-seconds=10"]
    with running(*command, "--limits.max-bytes-in-flight=1000000000", OPENAI_API_KEY="x") as process:
        address = Address.parse(process.log("serving")["listen"])
        async with grpc.aio.insecure_channel(str(address)) as channel, calling(address, window=0) as caller:
            small: Any = channel.unary_unary(http2.METHOD.decode())
            for _ in range(4):
                streams = await _call(caller, count, "echo:size=4000000")
                ended = asyncio.create_task(caller.all_ended(streams))
                while not ended.done():
                    with suppress(grpc.aio.AioRpcError):
                        await small(request().SerializeToString(), timeout=60)
                    await asyncio.wait({ended}, timeout=0.2)
                await ended
                peaks.append(peak_mebibytes(process.popen.pid))
    print("unread responses: peaks in MiB", *(f"{peak:.0f}" for peak in peaks))
    # Unread responses that stay would add 400 MB or more in each round.
    assert peaks[3] < peaks[0] + 300
