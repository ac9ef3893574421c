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
    """A table whose rows are seen one by one: one for each of `keys`, which are the first cells of the rows."""

    def __init__(self, columns: Sequence[str], keys: Sequence[tuple[str, ...]], known: str) -> None:
        self._columns, self._keys = columns, keys
        rows = [tuple(line.strip("| ").split(" | ")) for line in known.splitlines()[2:]]
        self._rows = {self._key(row): row for row in rows}

    def _key(self, row: tuple[str, ...]) -> tuple[str, ...]:
        return row[: len(self._keys[0])]

    def check(self, *cells: object) -> None:
        """A row as it is seen; in the document it is the same."""
        row = tuple(str(cell) or "–" for cell in cells)
        told = self._rows.get(self._key(row))
        if UPDATE:
            self._rows[self._key(row)] = row
        else:
            assert row == told, f"{row} was seen, and {told} is told: make docs, and read what it changes"

    def check_keys(self) -> None:
        """The document has these rows and no others."""
        assert UPDATE or list(self._rows) == self._keys

    def text(self) -> str:
        """The table, with what was seen."""
        return table(self._columns, [self._rows[key] for key in self._keys if key in self._rows])


@contextmanager
def rows(document: Path, name: str, columns: Sequence[str], keys: Sequence[tuple[str, ...]]) -> Iterator[Rows]:
    """The table of this name; written on leaving, if at all."""
    found = Rows(columns, keys, read(document, name))
    yield found
    if UPDATE:
        _write(document, name, found.text())
