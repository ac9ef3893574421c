"""Rules for text that leaves the service: well-formed Unicode, length limits, and no keys. Pure, for every dialect."""

import codecs
import json
import re
from collections.abc import Iterable

_REDACTED = "[redacted]"
_KEY_LIKE = re.compile(r"\b(?:sk|pk|rk|gsk|xai|key)-[A-Za-z0-9_\-*]{6,}|(?i:bearer)\s+[^\s\"',;\\]+")
_MIN_SECRET_CHARACTERS = 6
"""A shorter secret is a dummy for a local upstream. Redacting it would mutilate numbers."""
_PIECE = 1 << 16
"""Bytes or characters that are decoded in one step."""


def well_formed(text: str) -> str:
    """Return the text with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        if len(text) <= _PIECE:
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        pieces = (text[at : at + _PIECE].encode("utf-16-le", "surrogatepass") for at in range(0, len(text), _PIECE))
        return _decode(pieces, "utf-16-le")
    return text


def decode_utf8(data: bytes) -> str:
    """Return the text of UTF-8 without its byte order mark, with U+FFFD for invalid bytes."""
    if len(data) <= _PIECE:
        return data.decode("utf-8-sig", "replace")
    text = _decode((data[at : at + _PIECE] for at in range(0, len(data), _PIECE)), "utf-8")
    return text.removeprefix("\ufeff")


def _decode(pieces: Iterable[bytes], encoding: str) -> str:
    """Decode in pieces: 20 MiB of replacements in one step would hold the interpreter's lock for 1 s."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    return "".join([*map(decoder.decode, pieces), decoder.decode(b"", True)])


def clip(text: str, limit_bytes: int) -> str:
    """Return the longest prefix that has at most `limit_bytes` in UTF-8."""
    data = well_formed(text).encode()
    return data[:limit_bytes].decode("utf-8", "ignore")


class Redactor:
    """Function that replaces the given secrets, and all text that looks like an API key, by `[redacted]`.

    It also replaces what `learn_secrets` has received.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = tuple(secrets)
        self._known = _pattern(self._secrets)
        self._learned = 0

    def __call__(self, text: str) -> str:
        if self._learned != len(_learned):
            self._learned = len(_learned)
            self._known = _pattern((*self._secrets, *_learned))
        if self._known is not None:
            text = self._known.sub(_REDACTED, text)
        return _KEY_LIKE.sub(_REDACTED, text)


_learned: dict[str, None] = {}
"""Secrets from files that have changed while the service runs."""


def learn_secrets(secrets: Iterable[str]) -> None:
    """Make every redactor replace these secrets from now on, because a file of secrets can change at any time."""
    _learned.update(dict.fromkeys(secrets))


def _pattern(secrets: Iterable[str]) -> re.Pattern[str] | None:
    forms = {form for secret in secrets if len(secret) >= _MIN_SECRET_CHARACTERS for form in _forms(secret)}
    return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))) if forms else None


def _forms(secret: str) -> set[str]:
    """Return the secret and its forms in JSON text. Some writers also escape the slash."""
    escaped = json.dumps(secret)[1:-1]
    return {secret, escaped, escaped.replace("/", "\\/")}
