"""Serves metrics over HTTP, in the text format or OpenMetrics as the scraper requests."""

import socket
import threading
from socketserver import TCPServer
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from chatrpc_server.process import ports
from chatrpc_server.settings.address import Address

_POLL_SECONDS = 0.1
"""Longest wait of the exporter's thread before it notices `close`."""
_IDLE_SECONDS = 10.0
"""A connection that is silent for this time is closed, because each connection occupies a thread."""


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
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _server(registry: CollectorRegistry, address: Address) -> WSGIServer:
    # Like grpc, 0.0.0.0 includes IPv6 if this machine has it, and `::` includes IPv4.
    if address.host == "0.0.0.0":  # noqa: S104  # the address that the setting names
        try:
            return _server(registry, Address("::", address.port))
        except OSError as error:
            if error.errno not in ports.MISSING_ADDRESS_ERRNOS:
                raise

    class Server(ThreadingWSGIServer):
        """prometheus_client's server with dual stack and without DNS; `start_wsgi_server` offers neither."""

        address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET

        def server_bind(self) -> None:
            if self.address_family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != "::"))
            # Not super(): HTTPServer looks up the host's full name, which blocks for as long as DNS does.
            TCPServer.server_bind(self)
            self.server_name, self.server_port = address.host, self.server_address[1]
            self.setup_environ()

    return make_server(address.host, address.port, make_wsgi_app(registry), Server, handler_class=_Handler)


class _Handler(WSGIRequestHandler):
    timeout = _IDLE_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # an inherited name
        """Log nothing, because a scrape is no event."""
