"""Text as word-ish pieces: one piece is echo's token, and the content of one stream chunk."""

import re
from collections.abc import Sequence
from itertools import accumulate

# Scripts written without spaces: there, each character is a piece, as it is (about) a token elsewhere.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_LONGEST_WORD = 16
# Leading space belongs to the word, as in real tokens. The second branch can only match at the end of the text.
_PIECE = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\s{_UNSPACED}]{{1,{_LONGEST_WORD}}})|\s+")


def split(text: str) -> list[str]:
    """The pieces of `text`; joined they are `text` again. A code point is never split."""
    return _PIECE.findall(text)


def count(text: str) -> int:
    """How many pieces `text` has."""
    return sum(1 for _ in _PIECE.finditer(text))


def cut_before(pieces: Sequence[str], stops: Sequence[str]) -> list[str] | None:
    """The pieces up to the first occurrence of any of `stops`, which may span pieces; None if there is none."""
    if not stops:
        return None
    text = "".join(pieces)
    position = min((found for stop in stops if stop and (found := text.find(stop)) >= 0), default=None)
    if position is None:
        return None
    kept = []
    for piece, end in zip(pieces, accumulate(map(len, pieces)), strict=True):
        if end > position:
            kept.append(piece[: len(piece) - (end - position)])
            break
        kept.append(piece)
    return [piece for piece in kept if piece]
