"""Checks and reserves TCP ports before grpc listens, because grpc reports only that it could not bind."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from chatrpc_server.process.lifecycle import StartError
from chatrpc_server.settings.address import Address

MISSING_ADDRESS_ERRNOS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""Errors of an address that this machine lacks, such as `::1` without IPv6. Another address of the host is enough."""


def check_free(setting: str, address: Address) -> None:
    """Raise `StartError` if the address is in use or cannot be bound."""
    with _bound_sockets(setting, address, socket.SO_REUSEADDR):
        pass


@contextmanager
def reserved(setting: str, address: Address) -> Iterator[Address]:
    """Reserve the address for processes of this user that share it (SO_REUSEPORT); port 0 becomes a free port.

    Raises `StartError` if the address is in use: another process of this user could share the port and receive part of
    the connections.
    """
    check_free(setting, address)
    with _bound_sockets(setting, address, socket.SO_REUSEPORT) as port:
        yield Address(address.host, port)


@contextmanager
def _bound_sockets(setting: str, address: Address, option: int) -> Iterator[int]:
    """Bind sockets, without listening, at every IP address of the host; yield the port."""
    port = address.port
    with ExitStack() as stack:
        missing: OSError | None = None
        bound_count = 0
        try:
            for family, _, _, _, place in socket.getaddrinfo(address.host, None, type=socket.SOCK_STREAM):
                try:
                    bound = stack.enter_context(socket.socket(family))
                    bound.setsockopt(socket.SOL_SOCKET, option, 1)
                    if family == socket.AF_INET6:  # like grpc: `::` includes IPv4
                        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(place[0] != "::"))
                    bound.bind((place[0], port, *place[2:]))
                except OSError as error:
                    if error.errno not in MISSING_ADDRESS_ERRNOS:
                        raise
                    missing = error
                    continue
                port = bound.getsockname()[1]
                bound_count += 1
            if missing and not bound_count:
                raise missing
        except OSError as error:
            raise cannot_listen(setting, address, error) from None
        yield port


def cannot_listen(setting: str, address: Address, error: Exception) -> StartError:
    """Return the error for an address on which the service cannot listen."""
    cause = error.strerror if isinstance(error, OSError) else None
    return StartError(f"{setting}: cannot listen on {address}: {cause or error}; use a free one")
