"""Errors of the HTTP clients, beside those of httpx."""

import httpx


class InvalidHttp(httpx.RemoteProtocolError):
    """Bytes of the upstream that violate HTTP/1.1. The request has arrived, so it must not be sent twice."""
