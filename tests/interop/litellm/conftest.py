"""Fixtures for the tests against LiteLLM; collected only if tests/interop/litellm/run has started it."""

import os
from collections.abc import AsyncIterator

import pytest

from chatrpc_echo import Echo
from support import Service, service

collect_ignore_glob = [] if "LITELLM_BASE_URL" in os.environ else ["test_*.py"]


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    """The upstream of LiteLLM's models `echo` and `echo:…`."""
    async with Echo("127.0.0.1", int(os.environ["ECHO_PORT"])) as echo:
        yield echo


@pytest.fixture
async def chat() -> AsyncIterator[Service]:
    """The service in front of LiteLLM."""
    upstream = {"api_key": os.environ["LITELLM_MASTER_KEY"]}
    async with service(os.environ["LITELLM_BASE_URL"], upstream=upstream) as running:
        yield running
