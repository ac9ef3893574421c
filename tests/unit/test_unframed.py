"""Objects in bodies without event framing: every cut gives the same objects; linear time, bounded memory."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatrpc_server.core.errors import InvalidResponse
from chatrpc_server.core.openai import unframed

A, B = b'{"a":1}', b'{"b":[{"c":"}"}]}'

BODIES: dict[str, tuple[bytes, list[bytes], bytes]] = {
    # the objects, and the rest
    "one": (A, [A], b""),
    "blanks around it": (b" \r\n" + A + b"\n\n ", [A], b""),
    "lines": (A + b"\n" + B + b"\r\n", [A, B], b""),
    "without separator": (A + B, [A, B], b""),
    "RFC 7464": (b"\x1e" + A + b"\n\x1e" + B + b"\n", [A, B], b""),
    "array": (b"[" + A + b"," + B + b"]", [A, B], b""),
    "array over lines": (b"[\n" + A + b"\n,\n" + B + b"\n]\n", [A, B], b""),
    "[DONE] behind it": (A + b"\n[DONE]", [A], b"[DONE]"),
    "an event behind it": (A + b"\n\ndata: [DONE]\n\n", [A], b"data: [DONE]\n\n"),
    "a bracket behind it": (A + b"[", [A], b""),
    "braces in strings": (b'{"a":"}{"}' + B, [b'{"a":"}{"}', B], b""),
    "quotes in strings": (rb'{"a":"\"}"}' + B, [rb'{"a":"\"}"}', B], b""),
    "backslashes in strings": (rb'{"a":"\\"}' + B, [rb'{"a":"\\"}', B], b""),
    "over lines": (b'{\n  "a": {\n\n  }\n}', [b'{\n  "a": {\n\n  }\n}'], b""),
    "cut off": (A + b'{"b', [A], b""),
    "cut off in a string": (A + b'{"b":"\\', [A], b""),
    "an array of texts": (b'["a"]', [], b'["a"]'),
    "text": (b"sorry", [], b"sorry"),
    "nothing": (b"", [], b""),
}


def objects(pieces: list[bytes], limit: int = 1000) -> tuple[list[bytes], bytes, int]:
    """Return the objects, the rest of the body, and the number of bytes of an object that has not ended."""
    reader = unframed.Objects(limit, "a.setting")
    found, rest = [], b""
    for piece in pieces:
        if rest:
            rest += piece
        else:
            found += list(reader.feed(piece))
            rest = reader.rest
    assert reader.is_open == bool(reader.pending_bytes) == bool(reader.start)
    return found, rest, reader.pending_bytes


@pytest.mark.parametrize(("body", "found", "rest"), BODIES.values(), ids=BODIES)
def test_body(body: bytes, found: list[bytes], rest: bytes) -> None:
    pending = objects([body])[2]
    for cut in range(len(body) + 1):
        assert objects([body[:cut], b"", body[cut:]]) == (found, rest, pending), cut
    assert objects([body[at : at + 1] for at in range(len(body))]) == (found, rest, pending)


TEXTS = st.lists(st.sampled_from(["a", '"', "\\", "{", "}", "[", ",", "é", "\n"]), max_size=6).map("".join)
VALUES = st.dictionaries(TEXTS, st.one_of(TEXTS, st.lists(TEXTS, max_size=2), st.just({"a": {}})), max_size=3)


@settings(max_examples=50)
@given(st.lists(VALUES, min_size=1, max_size=4), st.booleans(), st.lists(st.integers(0, 500)))
def test_any_objects_in_any_pieces(values: list[Any], indented: bool, cuts: list[int]) -> None:
    body = "\n".join(json.dumps(value, indent=1 if indented else None) for value in values).encode()
    bounds = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    found, rest, pending = objects([body[start:end] for start, end in pairwise(bounds)], 1 << 20)
    assert [json.loads(one) for one in found] == values
    assert (rest, pending) == (b"", 0)


@pytest.mark.parametrize(
    "pieces", [[b'{"a":"' + b"x" * 99 + b'"}'], [b'{"a":"', *[b"x"] * 99]], ids=["whole", "endless"]
)
def test_a_limit(pieces: list[bytes]) -> None:
    with pytest.raises(InvalidResponse, match=r"JSON of more than 50 bytes; raise a\.setting"):
        objects(pieces, 50)


def test_the_limit_can_change_between_objects() -> None:
    reader = unframed.Objects(len(B), "first")
    assert list(reader.feed(B)) == [B]
    reader.limit(len(A), "later")
    assert list(reader.feed(A)) == [A]
    with pytest.raises(InvalidResponse, match="raise later"):
        list(reader.feed(B))


def test_each_byte_is_stored_once() -> None:
    body = b'{"a":"' + rb"\"}" * 30_000 + b'"}'
    assert objects([body[at : at + 7] for at in range(0, len(body), 7)], len(body)) == ([body], b"", 0)
