"""The proxy that the environment names for a URL, by the rules of curl."""

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit


def proxy_of(url: str, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the variable that names a proxy for this URL, and the proxy; None if `NO_PROXY` excludes it or none does.

    A variable in lower case has precedence over the same one in upper case.
    """
    parts = urlsplit(url)
    host, port = (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)
    excluded = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    if any(_includes(entry, host, port) for entry in excluded.lower().replace(",", " ").split()):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        for spelling in (name, name.upper()):
            if value := environ.get(spelling, "").strip():
                return spelling, value if "://" in value else f"http://{value}"
    return None


def _includes(entry: str, host: str, port: int) -> bool:
    """Return whether an entry of `NO_PROXY` includes the host: `*`, a domain, an address or a network."""
    name, colon, digits = entry.rpartition(":")
    if colon and digits.isdecimal() and (":" not in name or name.startswith("[")):
        if int(digits) != port:
            return False
        entry = name
    entry = entry.strip("[]")
    try:
        return ip_address(host) in ip_network(entry, strict=False)
    except ValueError:  # one of them is a name
        domain = entry.removeprefix("*").strip(".")
        return entry == "*" or (domain != "" and f".{host}".endswith(f".{domain}"))
