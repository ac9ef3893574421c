"""Fixtures for all tests."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chatrpc_echo import Echo
from support import Script, Service, service

ROOT = Path(__file__).parent.parent

# Child processes inherit it; a background job of a shell ignores SIGINT otherwise.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of the environment that the tests must not depend on."""
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "CHATRPC_", "OTEL_", "SSL_CERT_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    """The embedded upstream."""
    async with Echo() as echo:
        yield echo


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    """The scripted upstream."""
    async with Script() as script:
        yield script


@pytest.fixture
async def chat(echo: Echo) -> AsyncIterator[Service]:
    """The service in front of echo."""
    async with service(echo.base_url) as running:
        yield running
