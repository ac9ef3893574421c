"""Fixtures for the tests of single modules."""

from collections.abc import AsyncIterator
from pathlib import Path

import hypothesis
import pytest

from support.echo_caller import Caller, calling

# No limit of time for one example, because a busy machine exceeds it.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """A client of a fresh embedded upstream."""
    async with calling() as caller:
        yield caller


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of a settings file to be written."""
    return tmp_path / "settings.yaml"
