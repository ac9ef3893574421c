"""The exporter of metrics: addresses, DNS."""

import errno
import socket
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from chatrpc_server.process.lifecycle import StartError
from chatrpc_server.settings import Address
from chatrpc_server.telemetry import exporter
from support import ANY_PORT


def test_it_makes_no_dns_lookup_for_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """http.server makes one, which blocks for as long as DNS does."""

    def look_up(*_: object) -> str:
        raise AssertionError("DNS look-up")

    monkeypatch.setattr(socket, "getfqdn", look_up)
    exporter.listen(CollectorRegistry(), ANY_PORT).close()


LOOPBACK = ("127.0.0.1", "::1")


def reached(address: Address) -> list[str]:
    """Return the loopback addresses at which the exporter accepts connections."""
    found = []
    for host in LOOPBACK:
        try:
            socket.create_connection((host, address.port), timeout=10).close()
        except OSError:
            continue
        found.append(host)
    return found


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    ("host", "places"), [("0.0.0.0", LOOPBACK), ("::", LOOPBACK), ("127.0.0.1", LOOPBACK[:1]), ("::1", LOOPBACK[1:])]
)
def test_it_listens_where_grpc_would(host: str, places: tuple[str, ...]) -> None:
    listening = exporter.listen(CollectorRegistry(), Address(host, 0))
    try:
        assert listening.address.host == host
        assert reached(listening.address) == [*places]
    finally:
        listening.close()


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_without_ipv6_all_addresses_are_ipv4(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    class Socket(socket.socket):
        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(code, "no IPv6")
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Socket)
    listening = exporter.listen(CollectorRegistry(), Address("0.0.0.0", 0))
    try:
        assert reached(listening.address) == ["127.0.0.1"]
    finally:
        listening.close()


def test_a_port_in_use_is_reported() -> None:
    complaint = r"metrics_listen: cannot listen on 0\.0\.0\.0:\d+: Address already in use"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(StartError, match=complaint):
        exporter.listen(CollectorRegistry(), Address("0.0.0.0", taken.getsockname()[1]))
