"""Types of values with their rules. Each rule checks a value, and adds itself to the JSON schema."""

import base64
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import pydantic
from pydantic import AfterValidator, BeforeValidator, PlainSerializer, SecretStr
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from chatrpc_server.settings import header_lines
from chatrpc_server.settings.address import Address


@dataclass(frozen=True, slots=True, eq=False)
class _Rule:
    """A rule for a text; None always passes. `schema` states the rule in the JSON schema."""

    check: Callable[[Any], Any]
    schema: dict[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: pydantic.GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), **self.schema}


def url_before(path: str) -> _Rule:
    """Return the rule for a URL to which the service adds `path`. The schema accepts some URLs that it rejects."""

    def check(text: str | None) -> str | None:
        return text if text is None else _base_url(text, path)

    pattern = r"^\s*[Hh][Tt][Tt][Pp][Ss]?://[^/?#@\s]+(/[^?#\s]*)?\s*$"
    return _Rule(check, {"pattern": pattern, "not": {"type": "string", "pattern": rf"{path}/*\s*$"}})


def _base_url(text: str, path: str) -> str:
    try:
        url = urlsplit(text)
        valid = url.scheme in ("http", "https") and url.hostname and url.port != 0 and re.fullmatch(r"[!-~]+", text)
        (url.hostname or "").encode("idna")
    except ValueError:  # such as a port that is no number, an unclosed bracket, or an empty part of the host name
        valid = False
    if not valid:
        raise ValueError(f"must be http:// or https://, a host and the path before {path}")
    if "@" in url.netloc or "?" in text or "#" in text:
        raise ValueError("must not contain a user name, password, query (?…) or fragment (#…)")
    if text.rstrip("/").endswith(path):
        raise ValueError(f"must end before {path}, which the service adds")
    return text.rstrip("/")


def _matches(pattern: str, expected: str) -> _Rule:
    def check(value: str | SecretStr | None) -> str | SecretStr | None:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if text is not None and not re.fullmatch(pattern, text):
            raise ValueError(f"must be {expected}")
        return value

    return _Rule(check, {"pattern": f"^{pattern}$"})


def at_least(other: str) -> AfterValidator:
    """Return the rule for a number not below the field `other`, which must be declared before."""

    def check(value: float, info: pydantic.ValidationInfo) -> float:
        if value < info.data.get(other, value):
            raise ValueError(f"must be at least {other}, which is {info.data[other]}")
        return value

    return AfterValidator(check)


def not_with(*others: str) -> AfterValidator:
    """Return the rule for an address that differs from those in the fields `others`, which must be declared before."""

    def check(value: Address | None, info: pydantic.ValidationInfo) -> Address | None:
        for other in others:
            address = info.data.get(other)
            if value and address and value.overlaps(address):
                raise ValueError(f"must have another port than {other}, which is {address}")
        return value

    return AfterValidator(check)


def only_with(other: str, *, both: bool = False) -> AfterValidator:
    """Return the rule for a file that requires the field `other`, which must be declared before.

    If `both`, the other field also requires this one.
    """

    def check(value: Path | None, info: pydantic.ValidationInfo) -> Path | None:
        if value and not info.data.get(other, value):
            raise ValueError(f"requires {other}, which is not set; set both or neither")
        if both and info.data.get(other) and not value:
            raise ValueError(f"must be set, because {other} is set")
        return value

    return AfterValidator(check)


def names_in(value: object) -> list[str] | None:
    """Return the names in a text such as `a, b` or in a list; None for any other value."""
    if isinstance(value, str):
        return [name for name in map(str.strip, value.split(",")) if name]
    return value if isinstance(value, list) and all(isinstance(name, str) for name in value) else None


def _named(value: object) -> object:
    names = names_in(value)
    return value if names is None else {name: {} for name in names}


def _existing(folders: str | None) -> str | None:
    if not all(Path(folder).is_dir() for folder in (folders or "").split(os.pathsep) if folder):
        raise ValueError(f"must be directories that exist, separated by {os.pathsep}")
    return folders


stripped = BeforeValidator(lambda value: value.strip() if isinstance(value, str) else value)
# A line break in a header's value would start another header.
_in_header = _matches(r"[!-~]+", "visible ASCII characters, without spaces or line breaks")
Secret = Annotated[
    SecretStr | None, stripped, _in_header, PlainSerializer(lambda _: "***", when_used="json-unless-none")
]
Folders = Annotated[str | None, AfterValidator(_existing)]
HeaderValue = Annotated[str | None, _in_header]


def _own_header(name: str) -> str:
    if problem := header_lines.refusal(name.lower()):
        raise ValueError(f"{problem}; use another header")
    return name.lower()


HeaderName = Annotated[
    str, AfterValidator(_own_header), _matches("[A-Za-z0-9_-]+", "the name of a header, such as api-key")
]
AuthScheme = Annotated[str | None, _matches("[!-~]*", "one word, such as Bearer")]
Query = Annotated[
    str | None, stripped, _matches(r"[A-Za-z0-9._~!$'()*+,;:@/?%=&-]+", "a query without '?', such as api-version=1")
]


def _header_text(value: object) -> object:
    return "\n".join(value) if isinstance(value, list) and all(isinstance(line, str) for line in value) else value


def _valid_headers(text: str | None) -> str | None:
    header_lines.parse(text or "", secret=False)
    return text


HeaderLines = Annotated[
    str | None,
    BeforeValidator(_header_text, json_schema_input_type=str | list[str] | None),
    AfterValidator(_valid_headers),
]
_CALLERS_OWN = frozenset(("authorization", "api-key", "x-api-key", "cookie", "user-agent", "x-chatrpc-coalesce"))
"""Metadata that is for this service, or that gRPC sets."""


def _metadata_key(name: str, *, can_be_key: bool) -> str:
    name = name.lower()
    problem = header_lines.refusal(name)
    if not re.fullmatch(r"[a-z0-9_.-]+(?<!-bin)", name):
        problem = "is not the key of text metadata"
    elif not problem and name.startswith("grpc-"):
        problem = "belongs to gRPC"
    elif not problem and name in _CALLERS_OWN and not can_be_key:
        problem = "is for this service, not for the upstream; for callers' own keys use key_from_metadata"
    elif name in ("cookie", "user-agent", "x-chatrpc-coalesce"):
        problem = problem or "is for this service, not for the upstream"
    if problem:
        raise ValueError(f"{name if re.fullmatch('[a-z0-9_.-]{1,40}', name) else 'a key'} {problem}; remove it")
    return name


def _metadata_keys(keys: tuple[str, ...], info: pydantic.ValidationInfo) -> tuple[str, ...]:
    taken = header_lines.names(info.data.get("headers")) | {
        info.data.get("auth_header"),
        info.data.get("key_from_metadata"),
    }
    for name in (checked := tuple(_metadata_key(key, can_be_key=False) for key in keys)):
        if name in taken:
            raise ValueError(f"{name} is also in headers, auth_header or key_from_metadata; remove it from one")
    return checked


MetadataKey = Annotated[
    str | None, AfterValidator(lambda key: key if key is None else _metadata_key(key, can_be_key=True))
]
MetadataKeys = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: names_in(value) or value, json_schema_input_type=str | list[str]),
    AfterValidator(_metadata_keys),
]
Name = Annotated[str, _matches("[a-z0-9][a-z0-9_-]*", "lower-case letters, digits, '_' and '-', such as eu-1")]
Provider = Annotated[str, _matches("[a-z0-9][a-z0-9._-]*", "lower-case letters, digits and ._-, such as x_ai")]
ModelName = Annotated[str, _matches(r"\S+", "a name without spaces")]
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_HOST_PORT = rf"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:0*{_PORT})?"
_USER = r"[A-Za-z0-9._~!$&'()*+,;=:%-]+@"
"""User name and password in a URL (RFC 3986, userinfo)."""


class ProxyUrl(SecretStr):
    """The URL of a proxy. Its user name and password are secret."""

    @property
    def shown(self) -> str:
        """The URL with `***` for user name and password."""
        return re.sub(_USER, "***@", self.get_secret_value(), count=1)

    def secrets(self) -> Iterator[str]:
        """Yield user name and password in each form that a text can have."""
        user, at, _ = self.get_secret_value().removeprefix("http://").rpartition("@")
        if at:
            plain = unquote(user)
            yield from (user, plain, base64.b64encode(plain.encode()).decode())
            yield from filter(None, (user.partition(":")[2], plain.partition(":")[2]))


Proxy = Annotated[
    ProxyUrl | None,
    stripped,
    _matches(f"http://({_USER})?{_HOST_PORT}/?", "http://host:port or http://user:password@host:port"),
    PlainSerializer(lambda url: url.shown, when_used="json-unless-none"),
]


def named_groups(accepts: Any) -> BeforeValidator:
    """Return the rule for a map of groups that also accepts names, in a list or a text. `accepts`: its input type."""
    return BeforeValidator(_named, json_schema_input_type=accepts)
