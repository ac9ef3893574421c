"""Which engine carries requests to the upstream, and its TLS."""

import ssl
from collections.abc import Mapping
from typing import Protocol

import httpx

from chatrpc_server.core.call import Headers
from chatrpc_server.settings import UpstreamSettings
from chatrpc_server.upstream.http.httpx_transport import HttpxTransport
from chatrpc_server.upstream.http.pool import Pool


class Answer(Protocol):
    """A response whose head has come."""

    status: int

    @property
    def headers(self) -> Mapping[str, str]:
        """Names are in lower case."""
        ...

    async def read(self) -> bytes:
        """What has come of the body since, once there is any; nothing at its end. Raises `httpx.TransportError`."""
        ...

    async def aclose(self) -> None:
        """Gives the connection back, or ends it if the body has not been read to its end."""
        ...


class Transport(Protocol):
    """Connections to one upstream."""

    async def post(self, body: bytes, headers: Headers) -> Answer:
        """Sends a request, and waits for the head of its response. Raises `httpx.TransportError`."""
        ...

    def connections(self) -> tuple[int, int]:
        """How many there are: in use, and idle."""
        ...

    async def aclose(self) -> None:
        """Closes all connections."""
        ...


def transport(settings: UpstreamSettings, url: httpx.URL, headers: Headers) -> Transport:
    """What posts to this URL, with these headers and those of each call; to be made inside the running loop.

    Raises OSError for a useless `ca_file`.
    """
    tls = _tls(settings) if url.scheme == "https" else None
    arguments = url, headers, tls, settings.proxy, settings.connect_timeout_seconds
    return HttpxTransport(*arguments) if settings.http_client == "httpx" else Pool(*arguments)


def _tls(settings: UpstreamSettings) -> ssl.SSLContext:
    """Verifies against certifi's authorities, or those of `ca_file` alone."""
    if settings.ca_file is not None:
        return ssl.create_default_context(cafile=settings.ca_file)
    return httpx.create_ssl_context(trust_env=False)
