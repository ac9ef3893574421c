"""Serves metrics over HTTP, in the text format or OpenMetrics, whichever the scraper asks for."""

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
from chatrpc_server.settings import Address

_POLL_SECONDS = 0.1
"""How soon the exporter's thread notices that it is to stop."""
_SILENCE_SECONDS = 10.0
"""A connection that says nothing for so long is closed: each has a thread."""


def listen(registry: CollectorRegistry, address: Address) -> "Exporter":
    """An exporter at the address of the setting `metrics_listen`. Raises `StartError` if it is not to be had."""
    try:
        return Exporter(registry, address)
    except OSError as error:
        raise ports.cannot_listen("metrics_listen", address, error) from None


def register_process(registry: CollectorRegistry) -> None:
    """Adds what is known of this process: CPU, memory, descriptors, Python and its garbage collector."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)


class Exporter:
    """Serves a registry from a thread of its own, so that a busy event loop can still be looked at."""

    def __init__(self, registry: CollectorRegistry, address: Address) -> None:
        """Listens at once. Raises OSError if the address is not to be had. Port 0 means any."""
        self._server = _server(registry, address)
        self.address = Address(address.host, self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_SECONDS,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving and waits for the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _server(registry: CollectorRegistry, address: Address) -> WSGIServer:
    # Like grpc: 0.0.0.0 means IPv6 too, where there is any, and `::` IPv4.
    if address.host == "0.0.0.0":  # noqa: S104  # which it is asked for
        try:
            return _server(registry, Address("::", address.port))
        except OSError as error:
            if error.errno not in ports.MISSING_ADDRESS_ERRNOS:
                raise

    class Server(ThreadingWSGIServer):
        address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET

        def server_bind(self) -> None:
            if self.address_family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != "::"))
            # Its parents would ask DNS for the host's full name, and wait as long as that takes.
            TCPServer.server_bind(self)
            self.server_name, self.server_port = address.host, self.server_address[1]
            self.setup_environ()

    return make_server(address.host, address.port, make_wsgi_app(registry), Server, handler_class=_Quiet)


class _Quiet(WSGIRequestHandler):
    timeout = _SILENCE_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name is inherited
        """A scrape is no event."""
