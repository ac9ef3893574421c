"""Fixtures for the tests of single modules."""

from collections.abc import AsyncIterator

import pytest

from support.echo_caller import (
    Caller,
    calling,
)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """A client of a fresh embedded upstream."""
    async with calling() as caller:
        yield caller
