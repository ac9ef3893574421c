"""Repairs the head of a response that llhttp rejects although it is harmless. Pure: bytes in, bytes out.

It reads what h11, Go's net/http and aiohttp read: folded lines (RFC 9112 section 5.2), equal lengths that are repeated,
and control characters in values. It leaves everything else as it is, so that the parser rejects it: a message whose end
is ambiguous can smuggle a second response.
"""

import re

_END = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(rb"(?:\r?\n)*HTTP/1\.[01] [0-9]{3}[^\r\n]*\r?\n")
_LINE_BREAK = re.compile(rb"\r?\n")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH = re.compile(rb"[0-9]+")
_CONTROLS = bytes({*range(1, 32), 127} - {*b"\t\r\n"})
_FRAMING = {b"content-length", b"transfer-encoding", b"connection"}
"""Headers that determine the end of the message. Control characters in them are never accepted."""
_SPACES = bytes.maketrans(_CONTROLS, b" " * len(_CONTROLS))
"""NUL and a bare CR stay invalid, because other programs end a value there."""


def can_repair(data: bytes) -> bool:
    """Return whether the bytes begin with a valid status line, so that the fault is in a header."""
    return _STATUS_LINE.match(data) is not None


def length_of(data: bytearray, start: int) -> int:
    """Return the number of bytes of the first head, or 0 if it is incomplete. No end is before `start`."""
    end = _END.search(data, start)
    return end.end() if end else 0


def repair(head: bytes) -> bytes:
    """Return a complete head in a form that the parser accepts, if it is harmless."""
    status, *lines = _LINE_BREAK.split(head.rstrip(b"\r\n"))
    fields: list[bytes] = []
    for line in lines:
        if fields and line.startswith((b" ", b"\t")):
            fields[-1] = b"%s %s" % (fields[-1].rstrip(b" \t"), line.strip(b" \t"))
        else:
            fields.append(line)
    named = [(field.partition(b":")[0].lower(), field) for field in fields]
    lengths = [
        length.strip(b" \t")
        for name, field in named
        if name == b"content-length"
        for length in field.partition(b":")[2].split(b",")
    ]
    has_one_length = len(lengths) > 1 and len(set(lengths)) == 1 and _LENGTH.fullmatch(lengths[0])
    kept = [status]
    for name, field in named:
        if name == b"content-length" and has_one_length:
            continue
        is_harmless = _NAME.fullmatch(name) and name not in _FRAMING
        kept.append(field.translate(_SPACES) if is_harmless else field)
    if has_one_length:
        kept.append(b"content-length: " + lengths[0])
    return b"\r\n".join([*kept, b"", b""])
