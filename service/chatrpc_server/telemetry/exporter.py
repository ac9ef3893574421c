"""Serves metrics over HTTP, in the text format or OpenMetrics as the scraper requests."""

import io
import logging
import socket
import threading
import time
from contextlib import suppress
from enum import Enum
from socketserver import TCPServer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from chatrpc_server.process import ports
from chatrpc_server.process.descriptors import reserve
from chatrpc_server.settings.address import Address

_POLL_SECONDS = 0.1
"""Longest wait of the exporter's thread before it notices `close`, or a connection that is too old."""
_CONNECTION_SECONDS = 10.0
"""Age at which a connection is closed: time to send the request and to read the response."""
_MAX_CONNECTIONS = 32
"""Connections at once, because each occupies a thread. If there are more, the slowest is closed."""
_CONNECTION = "chatrpc.connection"
"""The variable of a request that holds its handler."""

log = logging.getLogger(__name__)


def listen(registry: CollectorRegistry, address: Address) -> "Exporter":
    """Return an exporter at the address of the setting `metrics_listen`. Raises `StartError` if it cannot be bound."""
    try:
        return Exporter(registry, address)
    except OSError as error:
        raise ports.cannot_listen("metrics_listen", address, error) from None


def register_process(registry: CollectorRegistry) -> None:
    """Register the metrics of this process: CPU, memory, descriptors, Python and its garbage collector."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)


class Exporter:
    """Server of a registry, in a thread of its own so that metrics of a busy event loop remain available."""

    def __init__(self, registry: CollectorRegistry, address: Address) -> None:
        """Listen at once. Port 0 means any free port. Raises OSError if the address cannot be bound."""
        self._server = _server(registry, address)
        self.address = Address(address.host, self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_SECONDS,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and wait for the thread."""
        self._server.is_closing = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _server(registry: CollectorRegistry, address: Address) -> "_Server":
    # Like grpc, 0.0.0.0 includes IPv6 if this machine has it, and `::` includes IPv4.
    if address.host == "0.0.0.0":  # noqa: S104  # the address that the setting names
        try:
            return _server(registry, Address("::", address.port))
        except OSError as error:
            if error.errno not in ports.MISSING_ADDRESS_ERRNOS:
                raise

    class Server(_Server):
        address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET

        def server_bind(self) -> None:
            if self.address_family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != "::"))
            # Not super(): HTTPServer looks up the host's full name, which blocks for as long as DNS does.
            TCPServer.server_bind(self)
            self.server_name, self.server_port = address.host, self.server_address[1]
            self.setup_environ()

    return make_server(address.host, address.port, _application(registry), Server, handler_class=_Handler)


class _Phase(Enum):
    """Phases of a connection."""

    RECEIVING = 0
    RENDERING = 1
    SENDING = 2


class _Server(ThreadingWSGIServer):
    """prometheus_client's server with dual stack, without DNS, and with bounded connections.

    `start_wsgi_server` offers none of these.
    """

    request_queue_size = 128
    """Connections that wait to be accepted. With socketserver's 5, others wait seconds for a retransmitted SYN."""

    def __init__(self, *arguments: Any) -> None:
        self._changed = threading.Condition()
        self._accepted: dict[_Phase, dict[socket.socket, float]] = {phase: {} for phase in _Phase}
        """The open connections of each phase, oldest first, and the time at which each was accepted."""
        self._threads_running = 0
        self.is_closing = False
        super().__init__(*arguments)

    def get_request(self) -> Any:
        """Accept a connection; also if the process has no descriptor left."""
        try:
            return reserve.accept(self.socket)
        except OSError:
            time.sleep(_POLL_SECONDS)  # because the connection still waits, and the next attempt follows at once
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve the connection in a thread, once there is room for it."""
        with self._changed:
            while not self._has_room() and not self.is_closing:
                self._changed.wait(_POLL_SECONDS)
                self._close_expired()
            self._accepted[_Phase.RECEIVING][request] = time.monotonic()
            self._threads_running += 1
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread is left
            self._finish(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve the connection in this thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._finish(request)

    def proceed(self, request: socket.socket, phase: "_Phase") -> bool:
        """Note the connection's new phase. Return False if the connection was closed to make room."""
        with self._changed:
            for connections in self._accepted.values():
                if (accepted := connections.pop(request, None)) is not None:
                    self._accepted[phase][request] = accepted
                    return True
        return False

    def service_actions(self) -> None:
        """Close the connections that are too old. The server calls it after each poll."""
        with self._changed:
            self._close_expired()

    def _has_room(self) -> bool:
        """Return whether one more thread can start. If there are too many connections, close a slow one."""
        receiving, rendering, sending = self._accepted.values()
        if len(receiving) + len(rendering) + len(sending) >= _MAX_CONNECTIONS:
            slow = receiving or sending  # a scraper needs milliseconds for each
            if not slow:
                return False
            self._close_oldest(slow)
        return self._threads_running < 2 * _MAX_CONNECTIONS  # closed connections end their threads a little later

    def _close_expired(self) -> None:
        latest = time.monotonic() - _CONNECTION_SECONDS
        for connections in self._accepted.values():
            while connections and next(iter(connections.values())) < latest:
                self._close_oldest(connections)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing, because the only errors here are those of the connection."""

    def _close_oldest(self, connections: dict[socket.socket, float]) -> None:
        oldest = next(iter(connections))
        del connections[oldest]
        with suppress(OSError):  # the scraper has closed it
            oldest.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it

    def _finish(self, request: socket.socket) -> None:
        with self._changed:
            self._threads_running -= 1
            for connections in self._accepted.values():
                connections.pop(request, None)
            self._changed.notify()


def _application(registry: CollectorRegistry) -> Any:
    """Return the WSGI application. It renders one response at a time, so that scrapes leave CPU for calls."""
    render, rendering = make_wsgi_app(registry), threading.Lock()

    def application(environ: Any, start_response: Any) -> Any:
        try:
            with rendering:
                connection: _Handler = environ[_CONNECTION]
                if not connection.server.proceed(connection.connection, _Phase.RENDERING):
                    return []
                response = render(environ, start_response)
            connection.server.proceed(connection.connection, _Phase.SENDING)
            return response
        except Exception:
            log.exception("cannot render the metrics", extra={"event": "scrape_failed"})
            start_response("500 Internal Server Error", [])
            return [b"cannot render the metrics; see the log\n"]

    return application


class _Handler(WSGIRequestHandler):
    server: _Server
    timeout = _CONNECTION_SECONDS

    def get_environ(self) -> dict[str, Any]:
        """Implement `WSGIRequestHandler`. It is called once the request is complete."""
        self.server.proceed(self.connection, _Phase.RENDERING)
        return super().get_environ() | {_CONNECTION: self}

    def get_stderr(self) -> Any:
        """Return a file without effect, because wsgiref writes a traceback if the scraper does not read."""
        return io.StringIO()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # an inherited name
        """Log nothing, because a scrape is no event."""
