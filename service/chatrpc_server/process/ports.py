"""TCP ports to listen on: free, held for others, or told why not. grpc only says that it could not bind."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from chatrpc_server.process.lifecycle import StartError
from chatrpc_server.settings import Address

NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""Such as `::1`, one of the addresses of localhost, on a machine without IPv6: the others will do."""


def check_free(setting: str, address: Address) -> None:
    """Raises `StartError` if somebody listens there, or nobody can."""
    with _sockets(setting, address, socket.SO_REUSEADDR):
        pass


@contextmanager
def held(setting: str, address: Address) -> Iterator[Address]:
    """While it lasts, processes of this user may share the address (SO_REUSEPORT) and nobody else can listen there.

    Port 0 becomes a free one. Raises `StartError` like `check_free`: strangers who share too must not pass unnoticed.
    """
    check_free(setting, address)
    with _sockets(setting, address, socket.SO_REUSEPORT) as port:
        yield Address(address.host, port)


@contextmanager
def _sockets(setting: str, address: Address, option: int) -> Iterator[int]:
    """Bound, but not listening, at every IP address of the host; gives the port."""
    port = address.port
    with ExitStack() as stack:
        missing: OSError | None = None
        places = 0
        try:
            for family, _, _, _, place in socket.getaddrinfo(address.host, None, type=socket.SOCK_STREAM):
                try:
                    bound = stack.enter_context(socket.socket(family))
                    bound.setsockopt(socket.SOL_SOCKET, option, 1)
                    if family == socket.AF_INET6:  # like grpc: `::` means IPv4 too
                        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(place[0] != "::"))
                    bound.bind((place[0], port, *place[2:]))
                except OSError as error:
                    if error.errno not in NOT_HERE:
                        raise
                    missing = error
                    continue
                port = bound.getsockname()[1]
                places += 1
            if missing and not places:
                raise missing
        except OSError as error:
            raise cannot_listen(setting, address, error) from None
        yield port


def cannot_listen(setting: str, address: Address, error: Exception) -> StartError:
    """The same words for whatever could not listen."""
    why = error.strerror if isinstance(error, OSError) else None
    return StartError(f"{setting}: cannot listen on {address}: {why or error}")
