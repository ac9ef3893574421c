"""Addresses to listen on."""

import re

import pytest

from chatrpc_server.settings import Address
from support.settings_loading import HOST_PORT


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051, True),
        ("127.8.9.1:0", "127.8.9.1", 0, True),
        ("localhost:65535", "localhost", 65535, True),
        ("LOCALHOST:1", "LOCALHOST", 1, True),
        ("[::1]:50051", "::1", 50051, True),
        ("[::]:50051", "::", 50051, False),
        ("[fe80::1]:50051", "fe80::1", 50051, False),
        ("0.0.0.0:50051", "0.0.0.0", 50051, False),
        ("chatrpc.example.com:80", "chatrpc.example.com", 80, False),
        ("127.example.com:80", "127.example.com", 80, False),
        ("localhost.example.com:80", "localhost.example.com", 80, False),
    ],
)
def test_address(text: str, host: str, port: int, loopback: bool) -> None:
    address = Address.parse(text)
    assert (address.host, address.port, address.is_loopback, str(address)) == (host, port, loopback, text)
    assert Address.parse(address) is address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "50051",
        ":50051",
        "*:50051",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:٣",
        "127.1:50051",
        "256.0.0.1:50051",
        "::1:50051",
        "[::1]",
        "[::g]:50051",
        "[127.0.0.1]:50051",
        "http://127.0.0.1:50051",
        "unix:/run/chatrpc.sock",
        "a host:50051",
        "127.0.0.1:50051\n",
        50051,
        None,
    ],
    ids=repr,
)
def test_no_address(text: object) -> None:
    with pytest.raises(ValueError, match=re.escape(HOST_PORT)):
        Address.parse(text)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("127.0.0.1:1", "0.0.0.0:1", True),
        ("0.0.0.0:1", "[::1]:1", True),
        ("[::]:1", "127.0.0.1:1", True),
        ("[::]:1", "0.0.0.0:1", True),
        ("[::1]:1", "127.0.0.1:1", False),
        ("[::1]:1", "[0:0::1]:1", True),
        ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", True),
        ("localhost:1", "127.0.0.1:1", True),
        ("LocalHost:1", "[::1]:1", True),
        ("localhost:1", "127.0.0.2:1", False),
        ("a.example.com:1", "A.example.com:1", True),
        ("a.example.com:1", "b.example.com:1", False),
        ("a.example.com:1", "0.0.0.0:1", True),
    ],
)
def test_overlaps(one: str, other: str, overlap: bool) -> None:
    first, second = Address.parse(one), Address.parse(other)
    assert first.overlaps(second) == second.overlaps(first) == overlap
