"""Sockets to the upstream: how they notice a lost peer, and whether a byte waits in them."""

import socket

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


def is_quiet(connected: socket.socket) -> bool:
    """Return whether a socket is open and no byte waits in it."""
    try:
        connected.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
