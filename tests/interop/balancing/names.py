"""A name whose addresses a test says: DNS as a headless Service of Kubernetes has it, on a port of its own."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

NAME = "chatrpc-headless.default.svc.cluster.local"
_TTL_SECONDS = 5
"""As CoreDNS gives it for Services unless told otherwise."""
_A, _IN = 1, 1
_ANSWER = 0x8580
"""The header's flags: an authoritative answer without an error."""
_SAME_NAME = 0xC000 | 12
"""The question's name, which begins after the header."""


class HeadlessName(asyncio.DatagramProtocol):
    """Who asks for A records gets all `addresses`, at whatever name; other records there are none of."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked = 0
        """How often A records were asked for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.DatagramTransport = transport  # type: ignore[assignment]
        self.host, self.port = transport.get_extra_info("sockname")

    def target(self, port: int) -> str:
        """What to call in gRPC: the name at this port of each address, looked up here."""
        return f"dns://{self.host}:{self.port}/{NAME}:{port}"

    def datagram_received(self, query: bytes, sender: tuple[str, int]) -> None:
        """RFC 1035, 4.1. The question's name ends with an empty label, and its type and class follow."""
        question = query[12 : query.index(0, 12) + 5]
        wanted = struct.unpack(">2H", question[-4:]) == (_A, _IN)
        self.asked += wanted
        addresses = self.addresses if wanted else ()
        header = query[:2] + struct.pack(">5H", _ANSWER, 1, len(addresses), 0, 0)
        self._transport.sendto(header + question + b"".join(map(_record, addresses)), sender)


def _record(address: str) -> bytes:
    data = bytes(map(int, address.split(".")))
    return struct.pack(">3HIH", _SAME_NAME, _A, _IN, _TTL_SECONDS, len(data)) + data


@asynccontextmanager
async def headless_name(*addresses: str) -> AsyncIterator[HeadlessName]:
    """Answers until left."""
    loop = asyncio.get_running_loop()
    transport, name = await loop.create_datagram_endpoint(lambda: HeadlessName(*addresses), ("127.0.0.1", 0))
    try:
        yield name
    finally:
        transport.close()
