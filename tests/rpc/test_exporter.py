"""The exporter of metrics, where it could be made to wait."""

import socket

import pytest
from prometheus_client import CollectorRegistry

from chatrpc_server.metrics import exporter
from support import ANY_PORT


def test_it_asks_nobody_for_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """http.server does, and waits for DNS as long as that takes."""

    def asked(*_: object) -> str:
        raise AssertionError("asked DNS")

    monkeypatch.setattr(socket, "getfqdn", asked)
    exporter.listen(CollectorRegistry(), ANY_PORT).close()


def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter._Quiet, "timeout", exporter._Quiet.timeout / 100)
    listening = exporter.listen(CollectorRegistry(), ANY_PORT)
    try:
        with socket.create_connection((listening.address.host, listening.address.port), timeout=10) as silent:
            assert silent.recv(1) == b"", "closed by the exporter"
    finally:
        listening.close()
