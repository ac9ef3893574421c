"""Decodes bytes to server-sent events, by the WHATWG rules (html.spec.whatwg.org, "Interpreting an event stream").

Only LF, CR and CRLF end a line: `str.splitlines` also splits at U+2028, which is legal inside a JSON string. Time is
linear in the number of bytes, however they are split; memory is bounded. One extension: the field `error:` of older
llama.cpp servers counts as data of an `error` event.
"""

from collections.abc import Iterator

from chatrpc_server.core.errors import InvalidResponse

Event = tuple[str, bytes]
"""The event's type (default `message`) and its data."""

_BOM = b"\xef\xbb\xbf"


class Decoder:
    """Decoder of one stream. `max_event_bytes` limits its memory: one unfinished line and one unfinished event."""

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._type = ""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._at_start = True

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
                self._read_line(line)
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
            self._read_line(line)
        if self._data:
            yield self._dispatch()

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

    def _read_line(self, line: bytes) -> None:
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
        self._check_size(len(value))
        self._data.append(value)
        self._data_bytes += len(value) + 1

    def _dispatch(self) -> Event:
        event = (self._type or "message", b"\n".join(self._data))
        self._type = ""
        self._data.clear()
        self._data_bytes = 0
        return event

    def _check_size(self, more: int) -> None:
        if self._data_bytes + more > self._max_event_bytes:
            raise InvalidResponse(
                f"an event of the upstream's stream exceeds {self._max_event_bytes} bytes;"
                " raise upstream.max_event_bytes",
                "oversize",
            )
