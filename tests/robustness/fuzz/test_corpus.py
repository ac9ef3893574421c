"""The fuzz target over its seed corpus, without the fuzzer, so that target and corpus stay valid."""

from pathlib import Path

import pytest
import target

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


def test_there_is_a_corpus() -> None:
    assert CORPUS


@pytest.mark.parametrize("cut", target.CUTS, ids=lambda cut: cut.__name__)
@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.name)
def test_seed(file: Path, cut: target.Cut) -> None:
    target.check_cut(file.read_bytes(), cut)
