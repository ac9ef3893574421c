"""Sockets to the upstream: how they notice a lost peer, and whether a byte waits in them."""

import select
import socket
from collections.abc import Callable

_KEEPALIVE_PROBES = 4
"""Probes without a response after which the kernel closes a connection."""
_IDLE_OPTION = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)
"""The name of the idle time, which macOS calls TCP_KEEPALIVE."""


def keep_alive(connected: socket.socket, seconds: int) -> None:
    """Send TCP keepalive probes after each so many seconds without data."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if _IDLE_OPTION is not None:
        connected.setsockopt(socket.IPPROTO_TCP, _IDLE_OPTION, seconds)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


def quiet_check(connected: socket.socket) -> Callable[[], bool]:
    """Return a check that the socket is open and no byte waits in it. Do not call it after the close.

    A call costs 0.6 µs; a peek with `recv` costs 3 µs, because it raises an exception.
    """
    polled = select.poll()
    polled.register(connected, select.POLLIN)
    poll = polled.poll
    return lambda: not poll(0)
