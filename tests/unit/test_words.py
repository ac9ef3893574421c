"""The lint check for banned words: it finds each form, and reports the place and the remedy."""

import pytest

from support import words


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        pytest.param("Nobody reads it.", 1, "Nobody", id="word"),
        pytest.param("nobody = socket()\n", 1, "nobody", id="name"),
        pytest.param("def test_that_nobody_reads():", 1, "nobody", id="part of a name"),
        pytest.param("def test_of_no_use():", 1, "of_no_use", id="phrase in a name"),
        pytest.param("A file\nof no\nuse", 2, "of no use", id="phrase across lines"),
        pytest.param("x = 1\n# it is\n# told", 2, "is # told", id="phrase across comments"),
        pytest.param("// it is to be\n", 1, "is to be", id="comment of another language"),
        pytest.param("It was told", 1, "was told", id="passive"),
        pytest.param("It tells of it", 1, "tells", id="verb"),
        pytest.param("As asyncio says.", 1, "As asyncio says", id="quotation"),
    ],
)
def test_finds(text: str, line: int, word: str) -> None:
    (found,) = words.findings("a.py", text)
    assert (found.line, found.word) == (line, word)
    assert str(found) == f"a.py:{line}: {word}; {found.remedy}"


@pytest.mark.parametrize(
    "text",
    [
        "The upstream is to blame.",
        "A caller must retry.",
        "intellect, foretold_not, isotope",
        "somebodyelse",
    ],
)
def test_accepts(text: str) -> None:
    assert not list(words.findings("a.py", text))


def test_reports_findings_and_stale_exceptions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: words.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.md").write_text("Somebody.\nNobody.\n")
    (tmp_path / "b.png").write_bytes(b"\xff\xfe")
    monkeypatch.setattr(words, "ROOT", tmp_path)
    monkeypatch.setattr(words, "tracked", lambda _: ["a.md", "b.png"])
    monkeypatch.setattr(words, "EXCEPTIONS", {("a.md", "Somebody."): "a title", ("a.md", "Whoever"): "gone"})
    assert words.main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "a.md:2: Nobody; name the actor: caller, upstream, process",
        "a.md: no line with 'Whoever' needs an exception; remove it",
    ]
    monkeypatch.setattr(words, "EXCEPTIONS", {("a.md", "body."): "both"})
    assert words.main([]) == 0


def test_ignores_generated_files_and_data() -> None:
    files = words.tracked([])
    assert {"README.md", "Makefile", "tests/unit/test_sse.py"} <= set(files)
    assert not [file for file in files if file.startswith(("tests/fixtures/", "protos/python/src/"))]
