"""The headers of each request to an upstream: fixed ones, and those in files, which are followed while it runs."""

import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from chatrpc_server import __version__
from chatrpc_server.core.call import Call, Headers
from chatrpc_server.core.errors import MissingKey
from chatrpc_server.core.text import learn_secrets
from chatrpc_server.settings import SettingsError, UpstreamSettings, files, header_lines

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_KEY = re.compile(r"[!-~]+")


class RequestHeaders:
    """The headers of one upstream. `fixed` are those that never change."""

    def __init__(self, settings: UpstreamSettings) -> None:
        """Read the files. Raises SettingsError if one is invalid."""
        self._settings = settings
        self.fixed = _fixed(settings)
        key = settings.api_key.get_secret_value() if settings.api_key else None
        self._key_file = _Followed("upstream.api_key_file", settings.api_key_file, _key, key)
        taken = {name for name, _ in self.fixed} | {settings.auth_header, *settings.forward_metadata}
        self._headers_file: _Followed[Headers] = _Followed(
            "upstream.headers_file", settings.headers_file, partial(_secret_headers, taken), ()
        )
        scheme = settings.auth_scheme
        if scheme is None:
            scheme = "Bearer" if settings.auth_header == "authorization" else ""
        self._before_key = f"{scheme} " if scheme else ""

    def of(self, call: Call) -> Headers:
        """Return the headers that can change, for this call. Raises `MissingKey`."""
        settings = self._settings
        key = call.callers_key or self._key_file.current()
        headers = list(self._headers_file.current())
        if key is not None:
            headers.append((settings.auth_header, f"{self._before_key}{key}"))
        elif settings.key_from_metadata:
            raise MissingKey(f"the call has no key for the upstream; send it as metadata {settings.key_from_metadata}")
        return headers


class _Followed(Generic[_T]):
    """The content of a file, parsed. If a changed file is invalid, the old content stays."""

    def __init__(self, setting: str, file: Path | None, parse: Callable[[str], _T], initial: _T) -> None:
        self._setting, self._file, self._parse, self._value = setting, file, parse, initial
        self._fingerprint = files.fingerprint(file) if file else None
        if file:
            try:
                self._value = parse(files.read_for(setting, file).decode())
            except (OSError, ValueError) as error:
                raise _mistake(setting, file, error) from None

    def current(self) -> _T:
        """Return the newest valid content. One `stat` takes 2 µs."""
        if self._file is None or (found := files.fingerprint(self._file)) == self._fingerprint:
            return self._value
        self._fingerprint = found  # so that invalid content is read only once
        try:
            self._value = self._parse(files.read_for(self._setting, self._file).decode())
        except (OSError, ValueError) as error:
            log.warning(
                "reload of an upstream's file failed; keeping its old content",
                extra={
                    "event": "upstream_file_reload_failed",
                    "cause": _mistake(self._setting, self._file, error).mistakes[0],
                },
            )
        else:
            log.info(
                "upstream's file reloaded; the next request uses it",
                extra={"event": "upstream_file_reloaded", "setting": self._setting},
            )
        return self._value


def _fixed(settings: UpstreamSettings) -> list[tuple[str, str]]:
    headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        # No compression, because it delays a stream until a block is full.
        "accept-encoding": "identity",
        "user-agent": f"chatrpc-server/{__version__}",
    }
    if settings.organization:
        headers["openai-organization"] = settings.organization
    if settings.project:
        headers["openai-project"] = settings.project
    headers |= header_lines.parse(settings.headers or "", secret=False)
    return list(headers.items())


def _key(text: str) -> str:
    key = text.strip()
    if not _KEY.fullmatch(key):
        raise ValueError("must be one key of visible ASCII characters")
    learn_secrets([key])
    return key


def _secret_headers(taken: set[str], text: str) -> Headers:
    headers = header_lines.parse(text, secret=True)
    for name, _ in headers:
        if name in taken:
            raise ValueError(f"{name} is also set by another setting; keep one")
    learn_secrets([value for _, value in headers])
    return headers


def _mistake(setting: str, file: Path, error: Exception) -> SettingsError:
    if isinstance(error, files.SettingFileError):
        return SettingsError([str(error)])
    problem = "is not UTF-8 text" if isinstance(error, UnicodeError) else str(error)
    return SettingsError([f"{setting}: {file}: {problem}"])
