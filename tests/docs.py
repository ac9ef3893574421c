"""Parts of the documentation that the tests keep true: what stands between `<!-- name -->` and `<!-- /name -->`.

A test compares it with what it sees; with UPDATE_DOCS=1 (`make docs`) the test writes it.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

UPDATE = bool(os.environ.get("UPDATE_DOCS"))


def check(document: Path, name: str, text: str) -> None:
    """The part of this name is that text."""
    if UPDATE:
        _write(document, name, text)
    assert read(document, name) == text, f"{document.name} tells something else: make docs, and read what it changes"


def read(document: Path, name: str) -> str:
    """The part of this name."""
    (text,) = re.findall(_part(name), document.read_text(), flags=re.DOTALL)
    return str(text)


def _write(document: Path, name: str, text: str) -> None:
    document.write_text(re.sub(_part(name), lambda _: text, document.read_text(), count=1, flags=re.DOTALL))


def _part(name: str) -> str:
    return f"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(str(cell) or "–" for cell in line) + " |\n" for line in (columns, *rows)]
    return "".join([lines[0], "|---" * len(columns) + "|\n", *lines[1:]])


class Rows:
    """A table whose rows are seen one by one. The first `keys` cells of a row tell it from the others."""

    def __init__(self, columns: Sequence[str], keys: int, known: str) -> None:
        self._columns, self._keys = columns, keys
        cells = [tuple(line.strip("| ").split(" | ")) for line in known.splitlines()[2:]]
        self._known = {row[:keys]: row for row in cells}
        self._seen: dict[tuple[str, ...], tuple[str, ...]] = {}

    def check(self, *cells: object) -> None:
        """A row as it is seen; in the document it is the same."""
        row = tuple(str(cell) or "–" for cell in cells)
        self._seen[row[: self._keys]] = row
        if not UPDATE:
            told = self._known.get(row[: self._keys])
            assert row == told, f"{row} was seen, and {told} is told: make docs, and read what it changes"

    def keys(self) -> list[tuple[str, ...]]:
        """Of the document's rows."""
        return list(self._known)

    def text(self) -> str:
        """The table as seen, and as known where it was not looked at."""
        return table(self._columns, list((self._seen if UPDATE else self._known | self._seen).values()))


@contextmanager
def rows(document: Path, name: str, columns: Sequence[str], keys: int) -> Iterator[Rows]:
    """The table of this name; written on leaving, if at all."""
    found = Rows(columns, keys, read(document, name))
    yield found
    if UPDATE:
        _write(document, name, found.text())
