"""The metadata that precedes a response."""

from collections.abc import Iterable

_RATE_LIMITS = "x-ratelimit-"


class Metadata(dict[str, str]):
    """The initial metadata of a call, by its keys in lower case. Binary values are left out."""

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str | bytes]] | None) -> "Metadata":
        """Return the metadata that gRPC reports for a call."""
        return cls({key: value for key, value in pairs or () if isinstance(value, str)})

    @property
    def request_id(self) -> str:
        """The service's id of the call, which its log has too."""
        return self.get("x-request-id", "")

    @property
    def upstream_request_id(self) -> str:
        """The upstream's own id; empty if it sent none."""
        return self.get("x-upstream-request-id", "")

    @property
    def rate_limits(self) -> dict[str, str]:
        """The upstream's rate limits as it wrote them, such as `remaining-tokens`; empty if it sent none."""
        return {key.removeprefix(_RATE_LIMITS): value for key, value in self.items() if key.startswith(_RATE_LIMITS)}
