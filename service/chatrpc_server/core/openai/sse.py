"""Bytes to server-sent events, by the WHATWG rules (html.spec.whatwg.org, "Interpreting an event stream").

Pure: feed bytes in, take events out. Lines end in LF, CR or CRLF and nothing else: `str.splitlines` also cuts at
U+2028, which is legal inside a JSON string. Time is linear in the bytes however they are cut, and memory is bounded.
One thing beyond the rules: the field `error:` that older llama.cpp servers send counts as data of an `error` event.
"""

from collections.abc import Iterator

from chatrpc_server.core.errors import InvalidResponse

Event = tuple[str, bytes]
"""The event's type (`message` unless named) and its data."""

_BOM = b"\xef\xbb\xbf"


class Decoder:
    """Decodes one stream. `max_event_bytes` bounds what is kept: one unfinished line and one unfinished event."""

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._type = ""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that these bytes complete. Raises `InvalidResponse` where one is larger than allowed."""
        return self.feed_lines(self.only_lf(data))

    def feed_lines(self, data: bytes) -> Iterator[Event]:
        """The same, for what comes from `only_lf`."""
        *lines, rest = data.split(b"\n")
        if lines and self._line:
            lines[0] = bytes(self._line) + lines[0]
            self._line.clear()
        for line in lines:
            if line:
                self._take(line)
            elif self._data:
                yield self._dispatch()
            else:
                self._type = ""
                self._at_start = False
        self._line += rest
        self._check(len(self._line))

    def flush(self) -> Iterator[Event]:
        """What the end of the stream left unfinished: the rules drop it, real servers mean it."""
        if self._line:
            line = bytes(self._line)
            self._line.clear()
            self._take(line)
        if self._data:
            yield self._dispatch()

    @property
    def is_between_events(self) -> bool:
        """Has all been told of what was fed?"""
        return not (self._line or self._data or self._type or self._at_start)

    def only_lf(self, data: bytes) -> bytes:
        """These bytes with each end of a line as LF."""
        if not self._after_cr and b"\r" not in data:
            return data
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        elif not data:
            return data
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take(self, line: bytes) -> None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._append(value)
        elif name == b"event":
            self._type = value.decode("utf-8", "replace")
        elif name == b"error":
            self._type = "error"
            self._append(value)

    def _append(self, value: bytes) -> None:
        self._check(len(value))
        self._data.append(value)
        self._data_bytes += len(value) + 1

    def _dispatch(self) -> Event:
        event = (self._type or "message", b"\n".join(self._data))
        self._type = ""
        self._data.clear()
        self._data_bytes = 0
        return event

    def _check(self, more: int) -> None:
        if self._data_bytes + more > self._max_event_bytes:
            raise InvalidResponse(f"the upstream sent an event of more than {self._max_event_bytes} bytes", "oversize")
