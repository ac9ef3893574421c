"""Text that leaves the service: well-formed, within its limit, and without keys."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc_server.core.text import Redactor, clip, decode_utf8, learn_secrets, well_formed

HIGH, LOW, LOST = "\ud83d", "\ude00", "\ufffd"  # of 😀
KEY = 'key "with\\odd/marks"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", "", id="empty"),
        pytest.param("a😀é", "a😀é", id="well-formed"),
        pytest.param("a" + HIGH + LOW + "b", "a😀b", id="pair"),
        pytest.param("a" + HIGH, "a" + LOST, id="high at the end"),
        pytest.param(HIGH + "a", LOST + "a", id="high at the start"),
        pytest.param(LOW, LOST, id="low"),
        pytest.param(LOW + HIGH, LOST + LOST, id="wrong order"),
        pytest.param(HIGH + HIGH + LOW, LOST + "😀", id="high before a pair"),
    ],
)
@pytest.mark.parametrize("piece", [1, 2, 1 << 16])
def test_well_formed(text: str, expected: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatrpc_server.core.text._PIECE", piece)
    assert well_formed(text) == expected


@pytest.mark.parametrize("piece", [1, 2, 1 << 16])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbfa", b"\xef\xbb", b"{}", "aé😀".encode(), b"\xff\xf0\x9fa\xc3"])
def test_decode_utf8(data: bytes, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatrpc_server.core.text._PIECE", piece)
    assert decode_utf8(data) == data.decode("utf-8-sig", "replace")


@pytest.mark.parametrize(
    ("text", "limit_bytes", "expected"),
    [
        pytest.param("abc", 3, "abc", id="fits"),
        pytest.param("abc", 2, "ab", id="too long"),
        pytest.param("abc", 0, "", id="nothing"),
        pytest.param("aé", 2, "a", id="no half of a character"),
        pytest.param("a😀", 4, "a", id="no part of four bytes"),
        pytest.param("a" + HIGH, 4, "a" + LOST, id="lone surrogate"),
    ],
)
def test_clip(text: str, limit_bytes: int, expected: str) -> None:
    assert clip(text, limit_bytes) == expected


@given(st.text(), st.integers(0, 20))
def test_clip_gives_the_longest_prefix(text: str, limit_bytes: int) -> None:
    clipped = clip(text, limit_bytes)
    assert text.startswith(clipped)
    assert len(clipped.encode()) <= limit_bytes
    assert clipped == text or len(text[: len(clipped) + 1].encode()) > limit_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"say {KEY}!", "say [redacted]!", id="the secret"),
        pytest.param(json.dumps({"x": KEY}), '{"x": "[redacted]"}', id="the secret in JSON"),
        pytest.param(json.dumps(KEY).replace("/", "\\/"), '"[redacted]"', id="the secret in JSON, slash escaped"),
        pytest.param("sk-0123456789, gsk-abcdef", "[redacted], [redacted]", id="looks like a key"),
        pytest.param("Bearer abc'", "[redacted]'", id="bearer"),
        pytest.param("sk-short, ask-0123456789", "sk-short, ask-0123456789", id="no key"),
        pytest.param("12.1", "12.1", id="a dummy"),
    ],
)
def test_redactor(text: str, expected: str) -> None:
    assert Redactor([KEY, "1"])(text) == expected


def test_redactor_without_secrets() -> None:
    assert Redactor()(f"{KEY} sk-0123456789") == f"{KEY} [redacted]"


def test_learned_secrets_are_redacted_by_every_redactor() -> None:
    before = Redactor([KEY])
    assert before("learned/0123") == "learned/0123"
    learn_secrets(["learned/0123", "1"])
    for redact in (before, Redactor()):
        assert redact("a learned/0123 and learned\\/0123, 1") == "a [redacted] and [redacted], 1"
    assert before(KEY) == "[redacted]"
