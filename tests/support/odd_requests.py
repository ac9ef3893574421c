"""Bytes that a hostile caller sends to the port of gRPC: a corpus by name, and a generator of endless others.

Both return what one connection sends, piece by piece. Nothing in them is a secret or a valid key.
"""

import gzip
import random
from collections.abc import Callable, Iterable

from support import http2
from support.calls import request
from support.http2 import block, data, frame, headers, message, request_fields

Pieces = list[bytes]

START = http2.PREFACE + frame(http2.SETTINGS)
BODY = request(model="echo:pieces=2").SerializeToString()
PADDED, PRIORITY = 0x8, 0x20
METHODS = (
    http2.METHOD,
    b"/chatrpc.v1.ChatCompletionService/CreateChatCompletionStream",
    b"/grpc.health.v1.Health/Check",
    b"/grpc.health.v1.Health/Watch",
    b"/grpc.health.v1.Health/List",
    b"/chatrpc.v1.ChatCompletionService/Nothing",
)
TLS_HELLO = bytes.fromhex("16030100c4010000c00303") + bytes(range(185))


def _call(body: bytes = message(BODY), more: Iterable[tuple[bytes, bytes]] = (), **changes: bytes | None) -> Pieces:
    """Return one request with these headers changed or added."""
    return [START, headers(1, [*request_fields(**changes), *more]), data(1, body)]


def _settings(identifier: int, value: int) -> bytes:
    return frame(http2.SETTINGS, 0, identifier.to_bytes(2) + value.to_bytes(4))


def _fragments(count: int, piece: bytes, *, ends: bool) -> Pieces:
    """Return a header block in many CONTINUATION frames."""
    end = frame(http2.CONTINUATION, 1, b"", http2.END_HEADERS) if ends else b""
    first = frame(http2.HEADERS, 1, block(request_fields()))
    return [START, first, frame(http2.CONTINUATION, 1, piece) * count, end]


_BOMB = message(gzip.compress(bytes(64 << 20), 9), compressed=1)
_TIMEOUTS = (b"", b"1", b"S", b"-1S", b"1x", b"999999999S", b"99999999H", b"0n", b"1.5S", b"\xff", b"1S1S", b" 1S")
_PATHS = (
    b"",
    b"/",
    b"//",
    b"*",
    b"/\xff",
    b"/\xff\xfe",
    b"/a\x00b",
    b"/\xed\xa0\x80",
    b"/" + b"a" * 60_000,
    b"http://a/b",
)
_VALUES = (b"", b"\xff", b"\x00", b"\r\n", b" ", b"\xc3\xa9", b"\xe9", b"\xed\xa0\x80", b"a" * 60_000, b"%FF", b"\x7f")

CORPUS: dict[str, Pieces] = {
    "nothing": [],
    "half a preface": [http2.PREFACE[:12]],
    "preface only": [http2.PREFACE],
    "preface twice": [http2.PREFACE, http2.PREFACE],
    "HTTP/1.1": [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    "HTTP/1.1 upgrade": [
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    ],
    "TLS hello": [TLS_HELLO],
    "PROXY protocol": [b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", START],
    "zeros": [bytes(100_000)],
    "no settings": [http2.PREFACE, headers(1, request_fields()), data(1, message(BODY))],
    **{f"path {path[:12]!r}": _call(path=path) for path in _PATHS},
    **{f"authority {value[:12]!r}": _call(authority=value) for value in _VALUES},
    **{f"method {value!r}": _call(method=value) for value in (b"GET", b"PUT", b"", b"CONNECT", b"\xff", b"post")},
    **{f"scheme {value!r}": _call(scheme=value) for value in (b"", b"https", b"ftp", b"\xff")},
    **{
        f"content-type {value!r}": _call(content_type=value)
        for value in (None, b"", b"text/html", b"application/grpc+json", b"application/grpc-web", b"\xff")
    },
    **{f"te {value!r}": _call(te=value) for value in (None, b"", b"gzip", b"\xff")},
    **{f"timeout {value!r}": _call(grpc_timeout=value) for value in _TIMEOUTS},
    **{
        f"encoding {value!r}": _call(grpc_encoding=value)
        for value in (b"", b"gzip", b"deflate", b"identity", b"snappy", b"\xff")
    },
    **{f"accept {value[:12]!r}": _call(grpc_accept_encoding=value) for value in _VALUES},
    **{f"metadata {value[:12]!r}": _call(x_odd=value) for value in _VALUES},
    **{f"binary {value[:12]!r}": _call(x_odd_bin=value) for value in (*_VALUES, b"=", b"a", b"a=b", b"AA,AA", b"@@@@")},
    **{f"own {value[:12]!r}": _call(x_request_id=value, traceparent=value, authorization=value) for value in _VALUES},
    **{
        f"name {name!r}": _call(more=[(name, b"v")])
        for name in (b"", b":", b":odd", b":path", b"UPPER", b"a b", b"\xff", b"a\x00", b"connection", b"host", b"-bin")
    },
    "no headers": [START, headers(1, [])],
    "no pseudo headers": [START, headers(1, [(b"te", b"trailers")])],
    "pseudo headers last": [START, headers(1, request_fields()[::-1]), data(1, message(BODY))],
    "status in a request": _call(more=[(b":status", b"200")]),
    "10,000 headers": [START, headers(1, [*request_fields(), *[(b"a", b"b")] * 400])] * 3,
    "headers without end": _fragments(3000, block([(b"a", b"b" * 20)]), ends=False),
    "empty continuations": _fragments(3000, b"", ends=True),
    "huge header list": _fragments(20, block([(b"a", b"b" * 16_000)]), ends=True),
    "continuation first": [START, frame(http2.CONTINUATION, 1, b"", http2.END_HEADERS)],
    "data between headers": [START, frame(http2.HEADERS, 1, block(request_fields())), data(1, b"")],
    "trailers in a request": [*_call(b""), headers(1, [(b"x", b"y")], http2.END_HEADERS | http2.END_STREAM)],
    "no message": _call(b""),
    "two messages": _call(message(BODY) * 2),
    "half a message": _call(message(BODY)[:-3]),
    "half a prefix": _call(message(BODY)[:3]),
    "length too large": _call(message(BODY, length=len(BODY) + 10)),
    "length too small": _call(message(BODY, length=len(BODY) - 10)),
    "length 4 GiB": _call(message(BODY, length=0xFFFFFFFF)),
    "no protobuf": _call(message(b"\xff" * 100)),
    "compressed without encoding": _call(message(gzip.compress(BODY), compressed=1)),
    "compressed wrongly": _call(message(BODY, compressed=1), grpc_encoding=b"gzip"),
    "compressed in half": _call(message(gzip.compress(BODY)[:-9], compressed=1), grpc_encoding=b"gzip"),
    "compression flag 255": _call(message(BODY, compressed=255)),
    "bomb": _call(_BOMB, grpc_encoding=b"gzip")
    if len(_BOMB) < 16_384
    else _call(_BOMB[:16_384], grpc_encoding=b"gzip"),
    "message byte by byte": [
        START,
        headers(1, request_fields()),
        *(data(1, bytes([b]), 0) for b in message(BODY)),
        data(1, b""),
    ],
    "2,000 empty data frames": [START, headers(1, request_fields()), data(1, b"", 0) * 2000],
    "reset at once": [START, headers(1, request_fields()), frame(http2.RST_STREAM, 1, bytes(4))],
    "200 resets": [
        START,
        *(headers(n, request_fields()) + frame(http2.RST_STREAM, n, bytes(4)) for n in range(1, 401, 2)),
    ],
    "even stream": [START, headers(2, request_fields())],
    "stream 0": [START, headers(0, request_fields())],
    "streams backwards": [START, headers(9, request_fields()), headers(7, request_fields())],
    "largest stream": [START, headers((1 << 31) - 1, request_fields()), headers(1, request_fields())],
    "reset of an idle stream": [START, frame(http2.RST_STREAM, 5, bytes(4))],
    "data on an idle stream": [START, data(5, message(BODY))],
    "push promise": [START, frame(http2.PUSH_PROMISE, 1, bytes(4) + block(request_fields()), http2.END_HEADERS)],
    "depends on itself": [START, frame(http2.HEADERS, 1, b"\0\0\0\1\1" + block(request_fields()), PRIORITY | 4)],
    "padding too long": [START, frame(http2.HEADERS, 1, b"\xff" + block(request_fields())[:9], PADDED | 4)],
    "goaway": [START, frame(http2.GOAWAY, 0, bytes(8)), headers(1, request_fields())],
    "frame too large": [START, frame(http2.DATA, 1, bytes(17_000))],
    "frame length 16 MiB": [START, b"\xff\xff\xff" + bytes([http2.HEADERS, 4]) + (1).to_bytes(4) + bytes(1000)],
    "unknown frame": [START, frame(0xFA, 1, b"abc", 0xFF)],
    "window of 0": [START, frame(http2.WINDOW_UPDATE, 0, bytes(4))],
    "window overflow": [START, frame(http2.WINDOW_UPDATE, 0, b"\x7f\xff\xff\xff") * 2],
    "settings of 5 bytes": [START, frame(http2.SETTINGS, 0, bytes(5))],
    "settings on a stream": [START, frame(http2.SETTINGS, 1)],
    "frame size 1": [START, _settings(5, 1)],
    "window of 4 GiB": [START, _settings(4, 0xFFFFFFFF)],
    "window of nothing": [START, _settings(4, 0), *_call()[1:]],
    "push 2": [START, _settings(2, 2)],
    "table of 4 GiB": [START, _settings(1, 0xFFFFFFFF), *_call()[1:]],
    "1,000 settings": [START, frame(http2.SETTINGS) * 1000],
    "1,000 pings": [START, frame(http2.PING, 0, bytes(8)) * 1000],
    "ping of 7 bytes": [START, frame(http2.PING, 0, bytes(7))],
    **{
        f"HPACK {code.hex()[:12]}": [START, frame(http2.HEADERS, 1, code, http2.END_HEADERS)]
        for code in (
            b"\x80",
            b"\xff\xff\xff\xff\xff\x0f",
            b"\x3f" + b"\xff" * 9,
            b"\x00",
            b"\x00\x85\xff\xff\xff\xff\xff",
            b"\x40\x7f\xff\xff\xff\xff\xff",
        )
    },
}


def generated(seed: int) -> Pieces:
    """Return an odd connection. The same seed always returns the same bytes."""
    dice = random.Random(seed)
    pieces = [START] if dice.random() < 0.97 else [START[: dice.randrange(len(START))]]
    for number in range(dice.randint(1, 4)):
        choice: Callable[[random.Random, int], Pieces] = dice.choices((_odd_call, _odd_frames, _mangled), (6, 2, 2))[0]
        pieces += choice(dice, 2 * number + 1)
    return pieces


def _bytes(dice: random.Random) -> bytes:
    if dice.random() < 0.5:
        return dice.choice(_VALUES + _TIMEOUTS + (b"gzip", b"application/grpc", b"trailers", b"POST", b"200", b"AAAA"))
    return dice.randbytes(dice.choice((1, 2, 7, 40, 300)))


def _odd_call(dice: random.Random, stream: int) -> Pieces:
    """Return a request of which some headers and some of the body are odd."""
    fields = request_fields(path=dice.choice(METHODS))
    names = [name for name, _ in fields]
    names += [b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"x-odd-bin", b"x-request-id", b"tracestate"]
    names += [b"authorization", b"content-length", b"user-agent", b"x-chatrpc-coalesce", b"grpc-previous-rpc-attempts"]
    for _ in range(dice.randint(0, 3)):
        name = dice.choice(names) if dice.random() < 0.8 else _bytes(dice)
        place = dice.randrange(len(fields) + 1)
        fields[place : place + dice.randint(0, 1)] = [(name, _bytes(dice))]
    whole = message(BODY, compressed=dice.choice((0, 0, 0, 1, 7)), length=dice.choice((None, None, 0, 5, 1 << 31)))
    body = dice.choice((message(BODY), whole, whole * 2, b"", whole[: dice.randrange(len(whole))], _bytes(dice)))
    middle = dice.randrange(len(body) + 1)
    pieces = [headers(stream, fields), data(stream, body[:middle], 0), data(stream, body[middle:])]
    if dice.random() < 0.2:
        pieces.insert(dice.randrange(4), frame(http2.RST_STREAM, stream, dice.randbytes(4)))
    return pieces


def _odd_frames(dice: random.Random, stream: int) -> Pieces:
    """Return frames of any kind with any content."""
    return [
        frame(
            dice.choice((*range(10), dice.randrange(256))),
            dice.choice((0, stream, stream, 2, (1 << 31) - 1)),
            dice.choice((b"", bytes(4), bytes(8), _bytes(dice), block(request_fields()))),
            dice.choice((0, 1, 4, 5, dice.randrange(256))),
        )
        for _ in range(dice.randint(1, 5))
    ]


def _mangled(dice: random.Random, stream: int) -> Pieces:
    """Return a valid request with some bytes changed, inserted or removed."""
    whole = bytearray(headers(stream, request_fields(path=dice.choice(METHODS))) + data(stream, message(BODY)))
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(whole))
        whole[place : place + dice.randint(0, 2)] = dice.randbytes(dice.randint(0, 2))
    return [bytes(whole)]
