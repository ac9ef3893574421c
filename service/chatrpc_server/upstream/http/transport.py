"""The port to the HTTP client of an upstream, and the choice of the client."""

from collections.abc import Mapping
from typing import Protocol

import httpx

from chatrpc_server.core.call import Headers
from chatrpc_server.settings import UpstreamSettings
from chatrpc_server.upstream.http.httpx_transport import HttpxTransport
from chatrpc_server.upstream.http.pool import Pool
from chatrpc_server.upstream.http.tls import create_context


class Response(Protocol):
    """A response whose head has arrived."""

    status: int

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers by lower-case name."""
        ...

    async def read(self) -> bytes:
        """Return the next bytes of the body, or b"" at its end. Raises `httpx.TransportError`."""
        ...

    async def aclose(self) -> None:
        """Release the connection, or close it if the body was not read to its end."""
        ...


class Transport(Protocol):
    """Connections to one upstream."""

    async def post(self, body: bytes, headers: Headers) -> Response:
        """Send a request and wait for the head of its response. Raises `httpx.TransportError`."""
        ...

    def connections(self) -> tuple[int, int]:
        """Return the numbers of connections in use and idle."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


def create(settings: UpstreamSettings, url: httpx.URL, headers: Headers) -> Transport:
    """Return a transport that posts to this URL with these headers. Call it inside the running loop.

    Raises SettingsError if a file for TLS is invalid.
    """
    tls = create_context(settings)
    proxy = httpx.Proxy(settings.proxy.get_secret_value()) if settings.proxy else None
    limits = settings.connect_timeout_seconds, settings.tcp_keepalive_seconds
    arguments = url, headers, tls, proxy, *limits
    return HttpxTransport(*arguments) if settings.http_client == "httpx" else Pool(*arguments)
