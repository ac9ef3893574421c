"""The outcome of a call for each fault of the upstream: docs/faults.md, row by row.

The tests expect that table; with UPDATE_DOCS=1 (`make docs`) they write it. This file has the rules for all rows.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatrpc_server.rpc.layers.metrics import CODE_NAMES
from support import Outcome, Service, docs, outcome, request, rested, service
from support.faults import (
    FAULTS,
    LONG_RETRY_AFTER_SECONDS,
    MINUTES_SECONDS,
    RETRY_AFTER_SECONDS,
    SLOW_FAULTS,
    UNREACHABLE,
    WHOLE_TEXT,
    base_url_of,
    proxy_of,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"
COLUMNS = ("fault", "the upstream", "RPC", "status", "reason", "attempts", "chunks before", "ends", "left behind")
_UNMERGED = [("x-chatrpc-coalesce", "off")]
RPCS = {"unary": "CreateChatCompletion", "stream": "CreateChatCompletionStream"}

CONNECT_SECONDS, MAX_RETRIES = 0.5, 2
FIRST_CHUNK_SECONDS, GAP_SECONDS, DEADLINE_SECONDS = 2.0, 3.0, 4.0
FINISHED_SECONDS = 0.05
"""So short that the call ends at once, compared with the limits below."""
LIMITS = {
    0.0: "at once",
    RETRY_AFTER_SECONDS: "after Retry-After",
    CONNECT_SECONDS * (1 + MAX_RETRIES): "connect limits",
    FIRST_CHUNK_SECONDS: "first-chunk limit",
    GAP_SECONDS: "gap limit",
    DEADLINE_SECONDS: "deadline",
    MINUTES_SECONDS: "after 4 minutes",
}
"""Limits for which a call may wait, in seconds: far enough apart to distinguish them on a busy machine."""


KEEPALIVE = [("grpc.keepalive_time_ms", 11_000), ("grpc.http2.max_pings_without_data", 0)]
"""The caller pings while it waits, more often than any of our clients, and without gRPC's own limit of pings."""
ALL_FAULTS = {**FAULTS, **SLOW_FAULTS}
_SLOW = [pytest.param(name, marks=[pytest.mark.slow, pytest.mark.timeout(600)]) for name in SLOW_FAULTS]


@pytest.fixture(scope="module")
def rows() -> Iterator[docs.Rows]:
    keys = [(name, fault.does, rpc) for name, fault in ALL_FAULTS.items() for rpc in RPCS]
    with docs.rows(DOCUMENT, "faults", COLUMNS, keys) as rows:
        yield rows


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("fault", [*FAULTS, *_SLOW])
async def test_fault(fault: str, rpc: str, rows: docs.Rows) -> None:
    async with _service(fault) as chat:
        before, counts = _resources(chat), _counts(chat)
        started = time.monotonic()
        # One message per event of the upstream, so that they can be counted.
        ended = await outcome(getattr(chat.stub, RPCS[rpc])(request(model=fault), metadata=_UNMERGED))
        seconds = time.monotonic() - started
        async with asyncio.timeout(5):
            while chat.value("chatrpc_rpcs_in_flight"):  # the caller may see the end slightly earlier
                await asyncio.sleep(0.001)
        left = await _left_behind(chat, before)
        _check_counts(chat, rpc, ended, counts)
        attempts = 1 + int(chat.value("chatrpc_upstream_retries_total"))
        assert chat.value("chatrpc_upstream_requests_total") - counts["requests"] == attempts
    _check_rules(ended, rpc, attempts)
    chunks = len(ended.messages) if rpc == "stream" else ""
    waited = max(limit for limit in LIMITS if limit <= seconds)
    cells = (fault, ALL_FAULTS[fault].does, rpc, ended.code.name, ended.reason, attempts, chunks, LIMITS[waited], left)
    rows.check(*cells)


def test_the_table_has_no_other_rows(rows: docs.Rows) -> None:
    rows.check_keys()


@asynccontextmanager
async def _service(fault: str) -> AsyncIterator[Service]:
    """A service in front of the fault. A normal call has opened the resources that it keeps, such as connections."""
    upstream = {
        "connect_timeout_seconds": CONNECT_SECONDS,
        "max_retries": MAX_RETRIES,
        "max_retry_after_seconds": (RETRY_AFTER_SECONDS + LONG_RETRY_AFTER_SECONDS) / 2,
        "first_chunk_timeout_seconds": FIRST_CHUNK_SECONDS,
        "chunk_gap_timeout_seconds": GAP_SECONDS,
        "finished_timeout_seconds": FINISHED_SECONDS if fault == "finished-keep-alive" else 30,
        "max_event_bytes": 1 << 20,
        "max_response_bytes": 4 << 20,
    }
    limits = {"default_deadline_seconds": DEADLINE_SECONDS}
    options = []
    if fault in SLOW_FAULTS:
        upstream |= dict.fromkeys(("first_chunk_timeout_seconds", "chunk_gap_timeout_seconds"), 2 * MINUTES_SECONDS)
        limits, options = {}, KEEPALIVE
    async with (
        base_url_of(fault) as base_url,
        proxy_of(fault) as proxy,
        service(base_url, options=options, upstream={**upstream, **proxy}, limits=limits) as chat,
    ):
        if fault in UNREACHABLE:
            await health_pb2_grpc.HealthStub(chat.channel).Check(health_pb2.HealthCheckRequest())
        else:
            await chat.stub.CreateChatCompletion(request(model="ok"))
            await rested(chat)  # so that the fault gets this connection
        yield chat


def _resources(chat: Service) -> tuple[int, int]:
    """Return tasks and file descriptors of this process, which is service, upstream and caller.

    An idle connection is kept, not left behind. It has a descriptor on both sides, and a task of the upstream.
    """
    idle = chat.server.upstream.connections()[1]
    return len(asyncio.all_tasks()) - idle, len(os.listdir("/proc/self/fd")) - 2 * idle


async def _left_behind(chat: Service, before: tuple[int, int]) -> str:
    """Return the resources beyond those before, after everything has had time to close."""
    until = time.monotonic() + 2
    while True:
        tasks, descriptors = (max(0, now - then) for now, then in zip(_resources(chat), before, strict=True))
        if not tasks and not descriptors:
            return "nothing"
        if time.monotonic() > until:
            return f"{tasks} tasks, {descriptors} descriptors"
        await asyncio.sleep(0.01)


def _counts(chat: Service) -> dict[str, float]:
    """Return the count of calls in each metric."""
    counted = {
        "started": "grpc_server_started_total",
        "handled": "grpc_server_handled_total",
        "timed": "grpc_server_handling_seconds_count",
        "operations": "gen_ai_client_operation_duration_seconds_count",
        "overheads": "chatrpc_overhead_seconds_count",
        "streams": "chatrpc_streams_ended_total",
        "requests": "chatrpc_upstream_requests_total",
    }
    return {what: chat.value(name) for what, name in counted.items()}


def _check_counts(chat: Service, rpc: str, ended: Outcome, before: dict[str, float]) -> None:
    """Check that each metric counted the call once, under its code, and that its slot is free."""
    assert chat.server.admission.in_flight == 0
    more = {what: count - before[what] for what, count in _counts(chat).items()}
    del more["requests"]
    assert more == {
        "started": 1,
        "handled": 1,
        "timed": 1,
        "operations": 1,
        "overheads": 1,
        "streams": float(rpc == "stream"),
    }
    assert chat.value("grpc_server_handled_total", grpc_method=RPCS[rpc], grpc_code=CODE_NAMES[ended.code]) >= 1


def _check_rules(ended: Outcome, rpc: str, attempts: int) -> None:
    """Check the rules that hold for every fault."""
    choices = [choice for message in ended.messages for choice in message.choices]
    texts = [(choice.message if rpc == "unary" else choice.delta).content for choice in choices]
    assert WHOLE_TEXT.startswith("".join(texts)), "chunks are out of order, repeated or invented"
    if ended.code is grpc.StatusCode.OK:
        assert "".join(texts) == WHOLE_TEXT, "truncated, but reported as success"
        assert choices[-1].finish_reason == "stop"
    else:
        assert ended.reason
        assert attempts == 1 or not texts, "retried after the first chunk"
