"""Decompresses the body of a response step by step, with bounded memory. Pure.

The service requests no compression, but some servers and proxies compress errors and streams all the same.
"""

import zlib

_GZIP = b"\x1f\x8b"
_TEXT = (b"{", b"[", b'"', b"<", b"data:", b"event:", b"error:", b"id:", b"retry:", b":", b"\xef\xbb\xbf")
"""Beginnings of bodies that are not compressed, with any content-encoding."""
_UNSUPPORTED = ("br", "zstd", "compress", "x-compress")


class UnsupportedCompressionError(ValueError):
    """A body that cannot be decompressed; the text is the name of its compression."""


class Decompressor:
    """Decompressor of one body: while `next` returns nothing, call `feed` with more of it."""

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._object = zlib.decompressobj(window_bits)
        self._input = b""

    @property
    def is_whole(self) -> bool:
        """Whether the compressed data has ended."""
        return self._object.eof

    def feed(self, data: bytes) -> None:
        """Add bytes of the body, after `next` has returned nothing."""
        is_cut = self._input == _GZIP[:1]  # between two members
        self._input = self._input + data if is_cut else data

    def next(self, limit_bytes: int) -> bytes:
        """Return at most this many bytes, or nothing if more input is necessary. Raises ValueError if it is invalid."""
        while True:
            if self._object.eof:  # other bytes behind the data count for nothing
                if not self._input.startswith(_GZIP):
                    return b""
                self._object = zlib.decompressobj(self._window_bits)
            try:
                data = self._object.decompress(self._input, limit_bytes)
            except zlib.error as error:
                raise ValueError(str(error)) from None
            self._input = self._object.unused_data if self._object.eof else self._object.unconsumed_tail
            if data or not self._input:
                return data


def of_body(encoding: str, start: bytes) -> Decompressor | None:
    """Return the decompressor of a body, or None if it is not compressed. The first bytes decide before the label.

    `encoding`: the header `content-encoding`. Raises `UnsupportedCompressionError`.
    """
    if start.startswith(_GZIP):
        return Decompressor(16 + zlib.MAX_WBITS)
    names = [name.strip().lower() for name in encoding.split(",")]
    if start.lstrip(b" \t\r\n").startswith(_TEXT):
        return None
    if "deflate" in names:
        is_zlib = len(start) > 1 and start[0] & 15 == 8 and int.from_bytes(start[:2], "big") % 31 == 0
        return Decompressor(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
    for name in names:
        if name in _UNSUPPORTED:
            raise UnsupportedCompressionError(name)
    return None
