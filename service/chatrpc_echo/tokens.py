"""Splits text into tokens, roughly words. One token is the content of one stream chunk."""

import re
from collections.abc import Sequence
from itertools import accumulate

# In scripts without spaces each character is a token, like roughly in real tokenisers.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_LONGEST_WORD = 16
# Leading space belongs to the word, as in real tokens. The second branch matches only spaces at the end of the text.
_TOKEN = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\s{_UNSPACED}]{{1,{_LONGEST_WORD}}})|\s+")


def split(text: str) -> list[str]:
    """Split the text into tokens, whose concatenation is the text. A code point is never split."""
    return _TOKEN.findall(text)


def count(text: str) -> int:
    """Return the number of tokens in the text."""
    return sum(1 for _ in _TOKEN.finditer(text))


def cut_before(tokens: Sequence[str], stops: Sequence[str]) -> list[str] | None:
    """Return the tokens before the first of `stops`, which can span tokens; None if none of them occurs."""
    if not stops:
        return None
    text = "".join(tokens)
    position = min((found for stop in stops if stop and (found := text.find(stop)) >= 0), default=None)
    if position is None:
        return None
    kept = []
    for token, end in zip(tokens, accumulate(map(len, tokens)), strict=True):
        if end > position:
            kept.append(token[: len(token) - (end - position)])
            break
        kept.append(token)
    return [token for token in kept if token]
