"""HTTP headers as settings give them: lines such as `User-Agent: example/1.0`. Messages quote no value."""

import re
from collections.abc import Iterable

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name (RFC 9110, token)."""
_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
_BETWEEN = re.compile(r"\r?\n|,\s*(?=[A-Za-z0-9_-]+:\s)")
_SECRET = re.compile(r"auth|key|token|secret|cookie|passw|credential", re.IGNORECASE)
CONNECTION = frozenset(
    [
        *("connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "te", "trailer"),
        *("transfer-encoding", "upgrade", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
    ]
)
"""Headers of one connection, or of its framing (RFC 9110, sections 7.2, 7.6 and 8.6)."""
OF_THE_SERVICE = frozenset(
    ("accept", "accept-encoding", "content-type", "content-encoding", "x-request-id", "traceparent", "tracestate")
)
"""Headers that the service sets for each request."""


def refusal(name: str) -> str:
    """Return why no setting can set this header, in lower case; empty if one can."""
    if not _NAME.fullmatch(name):
        return "is not the name of a header"
    if name in CONNECTION:
        return "belongs to the connection"
    return "is set by the service" if name in OF_THE_SERVICE else ""


def parse(text: str, *, secret: bool) -> list[tuple[str, str]]:
    """Return the headers in lines of text, with names in lower case. Raises ValueError with the number of a line.

    Unless the text is `secret`, a name that suggests a secret value is an error.
    """
    return parse_lines(_BETWEEN.split(text), secret=secret)


def parse_lines(lines: Iterable[str], *, secret: bool) -> list[tuple[str, str]]:
    """Return the headers; see `parse`."""
    headers: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, value = line.partition(":")
        name, value, where = name.strip().lower(), value.strip(), f"header {number}"
        if not colon or not _NAME.fullmatch(name):
            raise ValueError(f"{where}: must be name: value, such as User-Agent: example/1.0")
        if problem := refusal(name):
            raise ValueError(f"{where}: {name} {problem}; remove it")
        if name == "authorization":
            raise ValueError(f"{where}: authorization carries the key; use api_key_file, auth_header and auth_scheme")
        if not secret and _SECRET.search(name):
            raise ValueError(f"{where}: {name} can be secret; put it into the file of headers_file")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"{where}: the value of {name} must be visible ASCII characters and spaces")
        if name in headers:
            raise ValueError(f"{where}: {name} is given twice; keep one")
        headers[name] = value
    return list(headers.items())


def names(text: str | None) -> set[str]:
    """Return the names of the headers in valid lines."""
    return {name for name, _ in parse(text or "", secret=True)}
