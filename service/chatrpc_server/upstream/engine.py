"""Which transport drives httpx towards the upstream, with its TLS and proxy.

Measured with tests/bench/engines.py (uvloop, 2 cores, CPU of the client in µs, medians of five turns; in brackets the
ratio to aiohttp without any httpx around it):

    engine                            unary       50 at once   paced chunk   unary beside 500 streams
    httpx client over httpcore        552 (8.3)   1290 (24)    68 (5.3)      1361 (14)
    httpcore transport                431 (6.5)   1115 (21)    67 (5.2)      1316 (13)
    httpx client over httpx-aiohttp   228 (3.4)    162 (3.0)   18 (1.4)       239 (2.4)
    httpx-aiohttp transport           155 (2.3)     97 (1.8)   15 (1.2)       152 (1.5)
    our transport over aiohttp        111 (1.7)     84 (1.6)   13 (1.05)      139 (1.4)

So the engine is aiohttp, through a transport of our own, called without an httpx client around it. httpx-aiohttp costs
little more, but reports refused, DNS, TLS and reset connections alike as ConnectTimeout, and keeps cookies. httpcore
stays as the plain alternative. Every engine delivers each chunk within 0.3 ms (median) of its arrival.
"""

import ssl

import httpx

from chatrpc_server.settings import UpstreamSettings
from chatrpc_server.upstream.aiohttp_transport import AiohttpTransport
from chatrpc_server.upstream.httpcore_transport import HttpcoreTransport

Transport = AiohttpTransport | HttpcoreTransport


def transport(settings: UpstreamSettings) -> Transport:
    """The transport for these settings; to be made inside the running loop. Raises OSError for a useless `ca_file`."""
    tls = _tls(settings)
    if settings.engine == "httpcore":
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=15)
        return HttpcoreTransport(verify=tls, trust_env=False, limits=limits, proxy=settings.proxy)
    return AiohttpTransport(tls, settings.proxy)


def _tls(settings: UpstreamSettings) -> ssl.SSLContext | bool:
    """Verifies against certifi's authorities, or those of `ca_file` alone; no context where TLS plays no part."""
    if httpx.URL(settings.base_url).scheme != "https":
        return True
    if settings.ca_file is not None:
        return ssl.create_default_context(cafile=settings.ca_file)
    return httpx.create_ssl_context(trust_env=False)
