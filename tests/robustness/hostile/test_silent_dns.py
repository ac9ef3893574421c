"""A name server that does not respond: calls fail in time, share one lookup, and the process exits at once."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from support import outcome, request
from support.process import ANY_PORTS, Process, running

CALLS = 60
SITE = """
import socket, sys, threading

def silent(*arguments, **options):
    if arguments[0] == "silent.test":
        print("began-a-lookup", file=sys.stderr, flush=True)
        threading.Event().wait()
    return look_up(*arguments, **options)

look_up, socket.getaddrinfo = socket.getaddrinfo, silent
"""
"""Python runs it at the start of the process. The lookup never returns."""


PARAMETERS = [
    ("builtin", "uvloop"),
    pytest.param(("builtin", "asyncio"), marks=pytest.mark.slow),
    pytest.param(("httpx", "uvloop"), marks=pytest.mark.slow),
    pytest.param(("httpx", "asyncio"), marks=pytest.mark.slow),
]


@pytest.fixture(params=PARAMETERS, ids="-".join)
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Process]:
    http_client, event_loop = request.param
    (tmp_path / "sitecustomize.py").write_text(SITE)
    arguments = [
        "--log.format=json",
        f"--event-loop={event_loop}",
        f"--upstream.http-client={http_client}",
        "--upstream.base-url=http://silent.test:8000/v1",
        "--upstream.connect-timeout-seconds=0.3",
        "--upstream.max-retries=0",
    ]
    path = ":".join([str(tmp_path), *filter(None, sys.path)])
    with running("serve", *ANY_PORTS, *arguments, OPENAI_API_KEY="sk-none", PYTHONPATH=path) as process:
        yield process


async def test_a_silent_name_server(serve: Process) -> None:
    address = serve.log("serving")["listen"]
    async with grpc.aio.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = ChatCompletionServiceStub(channel)
        for _ in range(2):
            calls = [stub.CreateChatCompletion(request(), timeout=60) for _ in range(CALLS)]
            outcomes = await asyncio.gather(*(outcome(call) for call in calls))
            assert {each.reason for each in outcomes} == {"UPSTREAM_UNREACHABLE"}
            assert {"connect_timeout_seconds" in each.message for each in outcomes} == {True}
        threads = len(os.listdir(f"/proc/{serve.popen.pid}/task"))
        assert threads < CALLS, "each lookup occupies a thread"
    serve.signal()
    assert serve.wait() == 0
    assert sum("began-a-lookup" in line for line in serve.lines) == 1, "the calls share a lookup"
