"""docs/settings.md lists every setting; `make docs` writes it."""

from pathlib import Path

from chatrpc_server.settings import describe
from support import docs

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_table_of_settings() -> None:
    rows = [(f"`{row.path}`", f"`{row.env}`", row.type, row.default, row.description) for row in describe()]
    columns = ("setting", "variable", "must be", "default", "meaning")
    docs.check(DOCUMENT, "settings", docs.table(columns, rows))
