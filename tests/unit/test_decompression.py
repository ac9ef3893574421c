"""Compressed bodies: every format, cut at every place, with limits, and bodies whose label is wrong."""

import gzip
import zlib

import pytest

from chatrpc_server.core.decompression import Decompressor, UnsupportedCompressionError, of_body

TEXT = b'data: {"choices": []}\n\n' * 50


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


FORMATS = {
    # the header, the body
    "gzip": ("gzip", gzip.compress(TEXT)),
    "gzip, no label": ("", gzip.compress(TEXT)),
    "gzip, labelled deflate": ("deflate", gzip.compress(TEXT)),
    "gzip, labelled br": ("br", gzip.compress(TEXT)),
    "x-gzip": ("X-GZIP", gzip.compress(TEXT)),
    "gzip in two members": ("gzip", gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:])),
    "gzip and other bytes": ("gzip", gzip.compress(TEXT) + b"\r\n"),
    "deflate": ("deflate", zlib.compress(TEXT)),
    "deflate, raw": ("identity, deflate", raw_deflate(TEXT)),
}


def decompressed(decompressor: Decompressor, pieces: list[bytes], limit: int) -> bytes:
    result = b""
    for piece in pieces:
        decompressor.feed(piece)
        while data := decompressor.next(limit):
            assert len(data) <= limit
            result += data
    return result


@pytest.mark.parametrize(("encoding", "body"), FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("limit", [1, 7, 1 << 16])
def test_format(encoding: str, body: bytes, limit: int) -> None:
    for cut in range(2, len(body)):
        decompressor = of_body(encoding, body[:cut])
        assert decompressor is not None
        assert decompressed(decompressor, [body[:cut], body[cut:]], limit) == TEXT
        assert decompressor.is_whole


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "", "identity", "utf-8"])
@pytest.mark.parametrize(
    "start", [b'{"error":', b"\n[{", b"data: {", b": hi", b"<html>", b"\xef\xbb\xbf{", b"event: e"]
)
def test_a_body_that_is_not_compressed(encoding: str, start: bytes) -> None:
    assert of_body(encoding, start) is None


@pytest.mark.parametrize("encoding", ["", "identity", "gzip"])
def test_a_body_that_is_no_known_text(encoding: str) -> None:
    assert of_body(encoding, b"hello") is None


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, BR", "compress"])
def test_unsupported(encoding: str) -> None:
    with pytest.raises(UnsupportedCompressionError):
        of_body(encoding, b"\x0b\x02\x80")


@pytest.mark.parametrize("body", [b"\x1f\x8b\xff\xff\xff", gzip.compress(TEXT)[:-8] + b"12345678"])
def test_invalid(body: bytes) -> None:
    decompressor = of_body("gzip", body)
    assert decompressor is not None
    with pytest.raises(ValueError):  # noqa: PT011
        decompressed(decompressor, [body], 1 << 16)


def test_a_cut_body_is_not_whole() -> None:
    body = gzip.compress(TEXT)[:-3]
    decompressor = of_body("gzip", body)
    assert decompressor is not None
    assert decompressed(decompressor, [body], 1 << 16) == TEXT
    assert not decompressor.is_whole


def test_a_large_body_comes_in_steps() -> None:
    body = gzip.compress(bytes(10 << 20))
    decompressor = of_body("", body)
    assert decompressor is not None
    decompressor.feed(body)
    assert [len(decompressor.next(1 << 10)) for _ in range(10)] == [1 << 10] * 10
