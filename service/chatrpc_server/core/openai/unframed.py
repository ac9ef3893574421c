"""Finds JSON objects in a body without event framing: one response, one object per line (NDJSON), or an array of them.

Time is linear in the number of bytes, however they are split, because each byte is examined once; memory is bounded.
"""

import re
from collections.abc import Iterator

from chatrpc_server.core.errors import InvalidResponse

BLANK = b" \t\r\n\xef\xbb\xbf\x1e"
"""Bytes that can precede JSON: blank lines, which keep a connection alive, a byte order mark, 0x1E of RFC 7464."""
_SEPARATORS = re.compile(rb"(?:[\s,\]\x1e]|\[(?=[\s\[{]))*+")
"""Bytes between objects. The bracket of `[DONE]` is none."""
_TO_BRACE = re.compile(rb'(?:[^"{}]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
"""Bytes up to a brace outside of strings, or up to a string that does not end."""
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_SHOWN_BYTES = 16 * 1024
"""Bytes of an invalid object from which the caller receives a part."""
_QUOTE, _OPEN = b'"{'


class Objects:
    """The objects of one body. `setting` is the name of the limit for the size of each."""

    def __init__(self, max_bytes: int, setting: str) -> None:
        self.rest = b""
        """Bytes that follow the objects and are no JSON. No object is found after them."""
        self.limit(max_bytes, setting)
        self._data = bytearray()
        self._bracket = b""
        """A bracket at the end of a read, which can begin an array or `[DONE]`."""
        self._depth = 0
        self._is_in_string = False
        self._skipped = 0
        """1 if the last byte was a backslash, so that the next one is no end of the string."""

    def limit(self, max_bytes: int, setting: str) -> None:
        """Set the limit for the next objects."""
        self._max_bytes, self._setting = max_bytes, setting

    @property
    def is_open(self) -> bool:
        """Whether an object has begun and not ended."""
        return self._depth > 0

    @property
    def pending_bytes(self) -> int:
        """Bytes of the object that has not ended."""
        return len(self._data)

    @property
    def start(self) -> bytes:
        """The start of the object that has not ended."""
        return bytes(self._data[:_SHOWN_BYTES])

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Return the objects that these bytes complete. Raises `InvalidResponse` if an object is too large."""
        if self._bracket:
            data, self._bracket = self._bracket + data, b""
        at = 0
        while True:
            if not self._depth:
                at = _SEPARATORS.match(data, at).end()  # type: ignore[union-attr]  # it matches always
                if not data.startswith(b"{", at):
                    break
            begin, at = at, self._find_end(data, at)
            if len(self._data) + at - begin > self._max_bytes:
                problem = f"the upstream sent JSON of more than {self._max_bytes} bytes"
                raise InvalidResponse(f"{problem}; raise {self._setting}", "oversize")
            self._data += data[begin:at]
            if self._depth:
                return
            found = bytes(self._data)
            self._data.clear()
            yield found
        if data[at:] == b"[":
            self._bracket = b"["
        else:
            self.rest = data[at:]

    def _find_end(self, data: bytes, at: int) -> int:
        """Return the offset after the object that begins or continues at an offset, or the end of the data."""
        while at < len(data):
            if self._is_in_string:
                at = _IN_STRING.match(data, at + self._skipped).end()  # type: ignore[union-attr]  # it matches always
                self._skipped = 0
                if at < len(data):
                    self._is_in_string = data[at] != _QUOTE
                    self._skipped = int(self._is_in_string)
                    at += 1
                continue
            at = _TO_BRACE.match(data, at).end()  # type: ignore[union-attr]  # it matches always
            if at < len(data):
                self._is_in_string = data[at] == _QUOTE
                if not self._is_in_string:
                    self._depth += 1 if data[at] == _OPEN else -1
                at += 1
                if not self._depth:
                    break
        return at
