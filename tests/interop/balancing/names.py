"""A DNS server on its own port for one name with addresses set by the test, like a headless Service of Kubernetes."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

NAME = "chatrpc-headless.default.svc.cluster.local"
_TTL_SECONDS = 5
"""CoreDNS's default for Services."""
_A, _IN = 1, 1
_ANSWER = 0x8580
"""Flags of the header: an authoritative response without an error."""
_SAME_NAME = 0xC000 | 12
"""Pointer to the question's name, which begins after the header."""


class HeadlessName(asyncio.DatagramProtocol):
    """DNS server that returns all `addresses` as A records for every name, and no other records."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.query_count = 0
        """Number of queries for A records."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.DatagramTransport = transport  # type: ignore[assignment]
        self.host, self.port = transport.get_extra_info("sockname")

    def target(self, port: int) -> str:
        """Return the gRPC target: the name, resolved by this server, at this port of each address."""
        return f"dns://{self.host}:{self.port}/{NAME}:{port}"

    def datagram_received(self, query: bytes, sender: tuple[str, int]) -> None:
        """Respond as RFC 1035, 4.1 says. The question is a name, closed by an empty label, then type and class."""
        question = query[12 : query.index(0, 12) + 5]
        wanted = struct.unpack(">2H", question[-4:]) == (_A, _IN)
        self.query_count += wanted
        addresses = self.addresses if wanted else ()
        header = query[:2] + struct.pack(">5H", _ANSWER, 1, len(addresses), 0, 0)
        self._transport.sendto(header + question + b"".join(map(_record, addresses)), sender)


def _record(address: str) -> bytes:
    data = bytes(map(int, address.split(".")))
    return struct.pack(">3HIH", _SAME_NAME, _A, _IN, _TTL_SECONDS, len(data)) + data


@asynccontextmanager
async def headless_name(*addresses: str) -> AsyncIterator[HeadlessName]:
    """Run the DNS server."""
    loop = asyncio.get_running_loop()
    transport, name = await loop.create_datagram_endpoint(lambda: HeadlessName(*addresses), ("127.0.0.1", 0))
    try:
        yield name
    finally:
        transport.close()
