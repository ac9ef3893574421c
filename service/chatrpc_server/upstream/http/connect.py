"""TCP connections to an upstream: looks up its name, and connects to one of its addresses.

Names are looked up in threads of its own. The event loop's threads are few, and a silent name server would occupy all
of them; the process would also wait for them at its exit.
"""

import asyncio
import errno
import ipaddress
import socket
import threading
from collections import deque

import aiohappyeyeballs

from chatrpc_server.process.descriptors import reserve
from chatrpc_server.upstream.http import failures
from chatrpc_server.upstream.http.sockets import keep_alive

_CONNECTION_ATTEMPT_DELAY_SECONDS = 0.25
"""Delay before the next address is tried in parallel (Happy Eyeballs, RFC 8305 section 8)."""
_SHARED_SECONDS = 10.0
"""Age of a lookup that further calls do not share, because it can be lost. glibc asks again after 5 s."""
_MAX_LOOKUPS = 8
"""Lookups of one name at once; further calls share the newest."""

_AddressInfo = tuple[int, int, int, str, tuple[object, ...]]


class Connector:
    """Opens sockets. Create it inside the running loop. `keepalive_seconds`: see `upstream.tcp_keepalive_seconds`."""

    def __init__(self, keepalive_seconds: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._keepalive_seconds = keepalive_seconds
        self._lookups: dict[tuple[str, int], deque[_Lookup]] = {}

    async def connect(self, host: str, port: int) -> socket.socket:
        """Return a connected socket. Raises OSError."""
        addresses = _literal(host, port) or await self._look_up(host, port)
        connected = await aiohappyeyeballs.start_connection(
            addresses,
            happy_eyeballs_delay=_CONNECTION_ATTEMPT_DELAY_SECONDS,
            socket_factory=_open_socket,
        )
        if self._keepalive_seconds:
            keep_alive(connected, self._keepalive_seconds)
        return connected

    async def _look_up(self, host: str, port: int) -> list[_AddressInfo]:
        """Return the addresses of a name. Calls share a lookup that is in progress."""
        lookups = self._lookups.setdefault((host, port), deque())
        is_lost = bool(lookups) and lookups[-1].started < self._loop.time() - _SHARED_SECONDS
        if not lookups or (is_lost and len(lookups) < _MAX_LOOKUPS):
            lookup = _Lookup(self._loop, host, port)
            lookups.append(lookup)

            def on_done(_: object) -> None:
                lookups.remove(lookup)
                if not lookups and self._lookups.get((host, port)) is lookups:
                    del self._lookups[host, port]

            lookup.result.add_done_callback(on_done)
        # A call that is cancelled leaves the lookup to the others.
        with failures.step(failures.LOOK_UP):
            addresses, error = await asyncio.shield(lookups[-1].result)
        if error:
            raise error.with_traceback(None)
        return addresses


class _Lookup:
    """One lookup in a thread. Its result holds the addresses or the error."""

    def __init__(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
        self.started = loop.time()
        self.result: asyncio.Future[tuple[list[_AddressInfo], OSError | None]] = loop.create_future()
        self._loop, self._host, self._port = loop, host, port
        # A daemon, so that the process can exit during the lookup.
        thread = threading.Thread(target=self._run, name="chatrpc-lookup", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left
            self._finish([], OSError(errno.ENOMEM, str(error)))

    def _run(self) -> None:
        addresses: list[_AddressInfo] = []
        failure = None
        try:
            addresses = [*socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)]
        except OSError as error:
            failure = error
        except Exception as error:  # UnicodeError, for a name that is no host name
            failure = socket.gaierror(socket.EAI_NONAME, str(error))
        try:
            self._loop.call_soon_threadsafe(self._finish, addresses, failure)
        except RuntimeError:  # the loop is closed
            return

    def _finish(self, addresses: list[_AddressInfo], error: OSError | None) -> None:
        if not self.result.done():
            self.result.set_result((addresses, error))


def _literal(host: str, port: int) -> list[_AddressInfo]:
    """Return the address if the host is one, without a lookup; else an empty list."""
    try:
        is_ipv6 = ipaddress.ip_address(host).version == 6
    except ValueError:
        return []
    if "%" in host:  # the number of this interface is needed
        return []
    family, place = (socket.AF_INET6, (host, port, 0, 0)) if is_ipv6 else (socket.AF_INET, (host, port))
    return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place)]


def _open_socket(address: _AddressInfo) -> socket.socket:
    family, kind, protocol, _, _ = address
    reserve.require()
    try:
        return socket.socket(family, kind, protocol)
    except OSError as error:
        reserve.is_exhausted([error.errno])  # at once, before another call takes the descriptors of the reserve
        raise
