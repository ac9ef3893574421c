"""Keepalive pings are no attack: the service accepts the pings of callers that wait for a model, and no faster ones."""

import asyncio

import pytest

from chatrpc_server.rpc import listeners
from support import Exchange, Script, Service, http2, request, service


async def _silent_call(connection: http2.Connection) -> None:
    """Start a call to which the upstream does not respond."""
    body = http2.message(request().SerializeToString())
    await connection.send(http2.headers(1, http2.request_fields()), http2.data(1, body))


async def _ping(connection: http2.Connection, count: int, pause_seconds: float) -> bytes | None:
    """Send pings at this interval; return the reason if the service closes the connection."""
    goaway = asyncio.ensure_future(connection.receive_until(http2.GOAWAY))
    for _ in range(count):
        await connection.send(http2.frame(http2.PING, payload=b"still up"))
        await asyncio.wait({goaway}, timeout=pause_seconds)
        if goaway.done():
            received = goaway.result()
            return received.payload[8:] if received else b"closed without GOAWAY"
    goaway.cancel()
    return None


async def _after_pings(chat: Service, count: int, pause_seconds: float) -> bytes | None:
    async with http2.connect(chat.server.address) as connection:
        await _silent_call(connection)
        await chat.wait_for(1, "chatrpc_rpcs_in_flight")
        return await _ping(connection, count, pause_seconds)


@pytest.fixture
async def silent(script: Script) -> Script:
    """An upstream that never responds."""

    async def stay_silent(exchange: Exchange) -> None:
        await exchange.closed_by_peer()

    script.respond_with(stay_silent)
    return script


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("pause_seconds", [10.0, 11.0])
async def test_pings_of_patient_callers_pass(pause_seconds: float, silent: Script) -> None:
    """gRPC closes a connection at the third early ping, so four pings show more than its tolerance."""
    async with service(silent.base_url) as chat:
        assert await _after_pings(chat, 5, pause_seconds) is None
        assert chat.server.admission.in_flight == 1


async def test_grpc_obeys_the_setting(silent: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with a short interval: gRPC knows the option and applies it."""
    monkeypatch.setattr(listeners, "_MIN_PING_INTERVAL_MILLISECONDS", 50)
    async with service(silent.base_url) as chat:
        assert await _after_pings(chat, 6, 0.1) is None


async def test_faster_pings_close_the_connection(silent: Script) -> None:
    async with service(silent.base_url) as chat:
        assert await _after_pings(chat, 6, 0.1) == b"too_many_pings"
