"""Slow connections to the exporter of metrics: silent ones, half requests, and scrapers that do not read."""

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from chatrpc_server.telemetry import exporter
from chatrpc_server.telemetry.exporter import Exporter
from support import ANY_PORT

HEAD = b"GET /metrics HTTP/1.1\r\nhost: x\r\n"
TEXT_BYTES = 4 << 20


@pytest.fixture
def listening() -> Iterator[Exporter]:
    """An exporter whose response is larger than the buffers of a connection."""
    registry = CollectorRegistry()
    Counter("some", "x" * TEXT_BYTES, registry=registry)
    running = exporter.listen(registry, ANY_PORT)
    try:
        yield running
    finally:
        running.close()


def _connect(listening: Exporter) -> socket.socket:
    return socket.create_connection((listening.address.host, listening.address.port), timeout=60)


def _scrape(listening: Exporter) -> int:
    with urllib.request.urlopen(f"http://{listening.address}/metrics", timeout=60) as response:
        return bytes(response.read()).count(b"x")


def _threads() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, HEAD + b"\r\n"], ids=["silent", "line", "head", "unread"])
def test_slow_connections_hold_few_threads_and_no_scrape_fails(
    listening: Exporter, sent: bytes, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_MAX_CONNECTIONS", 8)  # for speed, because each response is large
    with ExitStack() as stack:
        for _ in range(4 * exporter._MAX_CONNECTIONS):
            connection = stack.enter_context(_connect(listening))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(sent)
        assert _scrape(listening) >= TEXT_BYTES
        assert 0 < _threads() <= 2 * exporter._MAX_CONNECTIONS
    assert capfd.readouterr().err == "", "a slow connection is no event"


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"\r\n"], ids=["silent", "byte-by-byte", "unread"])
def test_slow_connections_are_closed(listening: Exporter, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """The limit is the age of the connection, not its silence: a byte now and then does not extend it."""
    monkeypatch.setattr(exporter, "_CONNECTION_SECONDS", 0.5)
    monkeypatch.setattr(exporter._Handler, "timeout", 60.0)
    with _connect(listening) as slow:
        slow.sendall(sent)
        deadline = time.monotonic() + 60
        while _threads() or not sent:
            assert time.monotonic() < deadline, "it must be closed"
            if sent == HEAD:
                _send_a_byte(slow)
            time.sleep(0.02)
            if not sent:
                assert slow.recv(1) == b""
                break


def _send_a_byte(slow: socket.socket) -> None:
    try:
        slow.sendall(b"x")
    except OSError:
        return


def test_a_failed_response_is_logged_once(caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    class Broken:
        def collect(self) -> Any:
            raise RuntimeError("broken")

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Broken())  # type: ignore[arg-type]
    running = exporter.listen(registry, ANY_PORT)
    try:
        with _connect(running) as scraper:
            scraper.sendall(HEAD + b"\r\n")
            assert scraper.recv(20).startswith(b"HTTP/1.0 500")
    finally:
        running.close()
    assert [record.event for record in caplog.records if hasattr(record, "event")] == ["scrape_failed"]
    assert capfd.readouterr().err == ""
