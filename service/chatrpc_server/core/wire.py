"""Parses large messages in protobuf's wire format: counts their elements before, and parses piece by piece.

An empty element takes two bytes on the wire and more than a hundred in memory, so the size of a message does not limit
its memory. The parser in C holds the interpreter's lock, so a large message is parsed in pieces: the concatenation of
encoded messages is the encoding of the merged message (protobuf.dev, "Encoding", "Last One Wins").
"""

from functools import cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

_PIECE_BYTES = 1 << 20
_PIECE_FIELDS = 10_000
_VARINT, _FIXED64, _BYTES, _START_GROUP, _END_GROUP, _FIXED32 = range(6)


class TooManyElements(Exception):
    """A message with more elements than allowed. `path` is the field that holds the first one too many."""

    def __init__(self, path: str, count: int, limit: int) -> None:
        super().__init__(path)
        self.path = path
        self.count = count
        """The elements of that field up to this one."""
        self.limit = limit


def parse(message: Message, data: bytes, max_elements: int) -> None:
    """Parse the encoding into an empty message.

    Elements are those of all repeated fields and maps, on every level. Raises `TooManyElements`, and protobuf's
    DecodeError if the encoding is invalid.
    """
    counter = _Counter(data, max_elements)
    try:
        cuts = counter.count(0, len(data), _plan(type(message).DESCRIPTOR), cut=True)
    except IndexError:  # cut off; the parser reports it
        cuts = []
    begin = 0
    for cut in [*cuts, len(data)]:
        message.MergeFromString(data[begin:cut])
        begin = cut


class _Field(NamedTuple):
    name: str
    is_repeated: bool
    children: "dict[int, _Field]"


@cache
def _plan(kind: Descriptor) -> dict[int, _Field]:
    """Return the fields that are elements or can hold some, by tag. Types must not contain themselves."""
    plan = {}
    for field in kind.fields:
        children = _plan(field.message_type) if field.message_type is not None else {}
        if children or (field.is_repeated and not field.is_packed):
            plan[field.number << 3 | _BYTES] = _Field(field.name, field.is_repeated, children)
    return plan


class _Counter:
    """Counter of the elements of one message."""

    def __init__(self, data: bytes, max_elements: int) -> None:
        self._data = data
        self._left = self._max_elements = max_elements

    def count(self, at: int, end: int, plan: dict[int, _Field], *, cut: bool = False) -> list[int]:
        """Count in a range that encodes one message. If `cut`, return offsets between fields where it can be cut.

        Raises IndexError if the encoding is cut off.
        """
        data, cuts, fields, last_cut = self._data, [], 0, at
        counts: dict[int, int] = {}
        may_cut = cut
        while at < end:
            if may_cut and (fields >= _PIECE_FIELDS or at - last_cut >= _PIECE_BYTES):
                cuts.append(at)
                fields, last_cut = 0, at
            fields += 1
            tag = data[at]
            at += 1
            if tag > 127:
                tag, at = self._varint(at - 1)
            kind = tag & 7
            if kind == _BYTES:
                size = data[at]
                at += 1
                if size > 127:
                    size, at = self._varint(at - 1)
                field = plan.get(tag)
                if field is not None:
                    self._count_field(field, tag, at, min(at + size, end), counts)
                at += size
            elif kind == _VARINT:
                while data[at] > 127:
                    at += 1
                at += 1
            elif kind in (_FIXED32, _FIXED64):
                at += 4 if kind == _FIXED32 else 8
            elif kind in (_START_GROUP, _END_GROUP):
                may_cut = False
            else:  # no valid encoding; the parser reports it
                break
        return cuts if may_cut else []

    def _count_field(self, field: _Field, tag: int, begin: int, end: int, counts: dict[int, int]) -> None:
        position = counts.get(tag, 0)
        if field.is_repeated:
            counts[tag] = position + 1
            self._left -= 1
            if self._left < 0:
                raise TooManyElements(field.name, position + 1, self._max_elements)
        if field.children and end > begin:
            try:
                self.count(begin, end, field.children)
            except TooManyElements as error:
                name = f"{field.name}[{position}]" if field.is_repeated else field.name
                raise TooManyElements(f"{name}.{error.path}", error.count, error.limit) from None

    def _varint(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte: Any = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & 0xFFFFFFFF, at
            shift += 7
