"""Decodes bytes to server-sent events, by the WHATWG rules (html.spec.whatwg.org, "Interpreting an event stream").

Only LF, CR and CRLF end a line: `str.splitlines` also splits at U+2028, which is legal inside a JSON string. Time is
linear in the number of bytes, however they are split; memory is bounded. Extensions for the deviations of servers:

- The field `error:` of older llama.cpp servers counts as data of an `error` event.
- A line `{...}` without a field name counts as data, so that a bare error object is noticed.
- A line without a field name continues an object that has begun: a raw line break in a string, or indented JSON.
- A line of data that begins an object or is `[DONE]` ends the event before it if that is an object, because in valid
  JSON no `{` follows `}` and a line break. Some servers omit the blank lines between events.
"""

from collections.abc import Iterator

from chatrpc_server.core.errors import InvalidResponse

Event = tuple[str, bytes]
"""The event's type (default `message`) and its data."""

_BOM = b"\xef\xbb\xbf"
_BARE = (b"{", b"[{", b"[DONE]")
"""Beginnings of lines that are data without a field name."""
_CONTINUED = b'}],"'
"""First characters of lines that continue an object although the line before ends with a brace."""
_CHUNK = b'"choices"'
_UNKNOWN_BYTES = 4096


class Decoder:
    """Decoder of one stream. `max_event_bytes` limits its memory: one unfinished line and one unfinished event."""

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._type = ""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._late_type: str | None = None
        """A type after the data. After a chunk, or if more data begins an event, it belongs to the next event."""
        self._was_offered = False
        self._after_cr = False
        self._at_start = True
        self.has_fields = False
        """Whether a line was a field, a comment or JSON."""
        self.unknown = b""
        """The start of the lines that are neither fields nor comments nor JSON."""

    def feed(self, data: bytes) -> Iterator[Event]:
        """Return the events that these bytes complete. Raises `InvalidResponse` if an event is too large."""
        return self.feed_lines(self.only_lf(data))

    def feed_lines(self, data: bytes) -> Iterator[Event]:
        """Return the events that bytes from `only_lf` complete. Raises `InvalidResponse` like `feed`."""
        *lines, unfinished = data.split(b"\n")
        if lines and self._line:
            lines[0] = bytes(self._line) + lines[0]
            self._line.clear()
        for line in lines:
            if line:
                if event := self._read_line(line):
                    yield event
            elif self._data:
                yield self._dispatch()
            else:
                self._type = ""
                self._at_start = False
        self._line += unfinished
        self._check_size(len(self._line))

    def flush(self) -> Iterator[Event]:
        """Return the unfinished event at the end of the stream. The rules drop it, but real servers rely on it."""
        if self._line:
            line = bytes(self._line)
            self._line.clear()
            if event := self._read_line(line):
                yield event
        if self._data:
            yield self._dispatch()

    def offer(self) -> bytes | None:
        """Return the only line of data of the unfinished event if it can be a whole object; once for each event."""
        if self._was_offered or len(self._data) != 1 or self._type == "error" or not self._data[0].endswith(b"}"):
            return None
        self._was_offered = True
        return self._data[0]

    def take(self) -> Event:
        """Return the unfinished event and go on after it, because its data has proven to be whole."""
        return self._dispatch()

    @property
    def pending_bytes(self) -> int:
        """Bytes of the unfinished event."""
        return len(self._line) + self._data_bytes

    @property
    def is_between_events(self) -> bool:
        """Whether all fed bytes have been returned as events."""
        return not (self._line or self._data or self._type or self._at_start)

    def only_lf(self, data: bytes) -> bytes:
        """Return these bytes with LF as the only line ending."""
        if not self._after_cr and b"\r" not in data:
            return data
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        elif not data:
            return data
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _read_line(self, line: bytes) -> Event | None:
        """Add a line. Return the event before it if the line begins another one."""
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            return self._append(value)
        if name == b"event":
            kind = value.decode("utf-8", "replace")
            if self._data:
                self._late_type = kind
            else:
                self._type = kind
        elif name == b"error":
            event = self._append(value, is_first=bool(self._data) and _CHUNK in self._data[0])
            self._type, self._late_type = "error", None
            return event
        elif name in (b"", b"id", b"retry"):
            self.has_fields = True
        else:
            return self._read_bare(line)
        return None

    def _read_bare(self, line: bytes) -> Event | None:
        """Read a line that has no field name of the rules."""
        if self._begins_with_object():
            start = line.lstrip()[:1]
            is_continued = not self._data[-1].endswith(b"}") or (len(self._data) > 1 and start in _CONTINUED)
        else:
            is_continued = False
        if is_continued or line.startswith(_BARE):
            return self._append(line)
        if len(self.unknown) < _UNKNOWN_BYTES:
            self.unknown += (b"\n" if self.unknown else b"") + line[:_UNKNOWN_BYTES]
        return None

    def _begins_with_object(self) -> bool:
        """Return whether the unfinished event begins with one, apart from a first line that can be a whole chunk."""
        is_whole = len(self._data) > 1 and self._data[0].endswith(b"}")
        return bool(self._data) and self._data[is_whole].startswith(b"{")

    def _append(self, value: bytes, *, is_first: bool = False) -> Event | None:
        """Add a line of data. Return the event before it if the line begins another one."""
        event = None
        if self._data and (is_first or value.startswith(_BARE)) and self._data[-1].endswith(b"}"):
            next_type, self._late_type = self._late_type, None
            event = self._dispatch()
            self._type = next_type or ""
        self._check_size(len(value))
        self.has_fields = True
        self._data.append(value)
        self._data_bytes += len(value) + 1
        return event

    def _dispatch(self) -> Event:
        is_typed = self._late_type is None or _CHUNK in self._data[0]
        kind = self._type if is_typed else self._late_type
        event = (kind or "message", b"\n".join(self._data))
        self._type, self._late_type = "", None
        self._data.clear()
        self._data_bytes = 0
        self._was_offered = False
        return event

    def _check_size(self, more: int) -> None:
        if self._data_bytes + more > self._max_event_bytes:
            raise InvalidResponse(
                f"an event of the upstream's stream exceeds {self._max_event_bytes} bytes;"
                " raise upstream.max_event_bytes",
                "oversize",
            )
