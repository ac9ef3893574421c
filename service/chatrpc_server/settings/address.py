"""Addresses on which the service listens."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

_ALL = "all"


@dataclass(frozen=True, slots=True)
class Address:
    """A host name or IP address (IPv6 without its brackets) and a TCP port, 0 for any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: object) -> "Address":
        """Parse `127.0.0.1:50051`, `localhost:0` or `[::1]:50051`. Raises ValueError with the expected form."""
        if isinstance(text, Address):
            return text
        pattern = r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)):([0-9]{1,5})"
        match = re.fullmatch(pattern, str(text))
        try:
            if match and match[1]:
                IPv6Address(match[1])
            elif match and re.fullmatch(r"[0-9.]+", match[2]):
                IPv4Address(match[2])
        except ValueError:
            match = None
        if not match or int(match[3]) > 65535:
            raise ValueError("must be host:port, such as 127.0.0.1:50051 or [::1]:0 (no unix sockets)")
        return cls(match[1] or match[2], int(match[3]))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect. Of names only `localhost` counts, because names are not resolved."""
        if ":" in self.host:
            return IPv6Address(self.host).is_loopback
        return self.host.lower() == "localhost" or re.fullmatch(r"127\.[0-9.]+", self.host) is not None

    def overlaps(self, other: "Address") -> bool:
        """Return whether one process cannot listen on both. Names are not resolved, except `localhost`."""
        if self.port != other.port or not self.port:
            return False
        one, two = _hosts(self.host), _hosts(other.host)
        return bool(one & two) or _ALL in one or _ALL in two

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _hosts(host: str) -> set[str]:
    """Return the addresses of a host in one spelling. 0.0.0.0 and `::` each include IPv4 and IPv6."""
    if ":" in host:
        address = IPv6Address(host)
        host = str(address.ipv4_mapped or address)
    host = host.lower().removesuffix(".")
    if host in ("0.0.0.0", "::"):  # noqa: S104
        return {_ALL}
    return {"127.0.0.1", "::1"} if host == "localhost" else {host}
