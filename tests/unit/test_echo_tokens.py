"""The embedded upstream: text split into tokens, and cut at a stop sequence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatrpc_echo.tokens import cut_before, split


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_tokens_join_to_the_text(text: str) -> None:
    tokens = split(text)
    assert "".join(tokens) == text
    assert all(tokens)


@given(st.text("ab "), st.text("ab ", min_size=1, max_size=3))
def test_cut_before_equals_a_cut_of_the_text(text: str, stop: str) -> None:
    kept = cut_before(split(text), [stop])
    assert ("".join(kept) if kept is not None else text) == text.split(stop)[0]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("one two", ["one", " two"]),
        ("你好 世界", ["你", "好", " 世", "界"]),
        ("internationalisation", ["internationalisa", "tion"]),
        ("end \n", ["end", " \n"]),
        ("👩‍👩‍👧 ok", ["👩‍👩‍👧", " ok"]),
    ],
)
def test_tokens_resemble_words(text: str, tokens: list[str]) -> None:
    assert split(text) == tokens
