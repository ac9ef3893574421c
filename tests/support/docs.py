"""Parts of the documentation that tests keep true: the text between `<!-- name -->` and `<!-- /name -->`.

A test compares the part with the observed text; with UPDATE_DOCS=1 (`make docs`) the test writes it.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

UPDATE = bool(os.environ.get("UPDATE_DOCS"))


def check(document: Path, name: str, text: str) -> None:
    """Check that the part of this name is that text."""
    if UPDATE:
        _write(document, name, text)
    assert read(document, name) == text, f"{document.name} is stale; run `make docs` and review the difference"


def read(document: Path, name: str) -> str:
    """Return the part of this name."""
    (text,) = re.findall(_part(name), document.read_text(), flags=re.DOTALL)
    return str(text)


def _write(document: Path, name: str, text: str) -> None:
    document.write_text(re.sub(_part(name), lambda _: text, document.read_text(), count=1, flags=re.DOTALL))


def _part(name: str) -> str:
    return f"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(str(cell) or "–" for cell in line) + " |\n" for line in (columns, *rows)]
    return "".join([lines[0], "|---" * len(columns) + "|\n", *lines[1:]])


class Rows:
    """A table whose rows are observed one by one: one for each of `keys`, the first cells of the rows."""

    def __init__(self, columns: Sequence[str], keys: Sequence[tuple[str, ...]], known: str) -> None:
        self._columns, self._keys = columns, keys
        rows = [tuple(line.strip("| ").split(" | ")) for line in known.splitlines()[2:]]
        self._rows = {self._key(row): row for row in rows}

    def _key(self, row: tuple[str, ...]) -> tuple[str, ...]:
        return row[: len(self._keys[0])]

    def check(self, *cells: object) -> None:
        """Check that the document has this observed row."""
        row = tuple(str(cell) or "–" for cell in cells)
        documented = self._rows.get(self._key(row))
        if UPDATE:
            self._rows[self._key(row)] = row
        else:
            assert row == documented, (
                f"observed {row}, documented {documented}; run `make docs` and review the difference"
            )

    def check_keys(self) -> None:
        """Check that the document has these rows and no others."""
        assert UPDATE or list(self._rows) == self._keys

    def text(self) -> str:
        """Return the table with the observed rows."""
        return table(self._columns, [self._rows[key] for key in self._keys if key in self._rows])


@contextmanager
def rows(document: Path, name: str, columns: Sequence[str], keys: Sequence[tuple[str, ...]]) -> Iterator[Rows]:
    """The table of this name; with UPDATE_DOCS=1 it is written on exit."""
    found = Rows(columns, keys, read(document, name))
    yield found
    if UPDATE:
        _write(document, name, found.text())
