"""A live Prometheus, shared by the tests of this folder."""

from collections.abc import Iterator

import pytest

from deploy.prometheus.live import MISSING, Live, live, tool


@pytest.fixture(scope="session")
def live_prometheus() -> Iterator[Live]:
    """See `live`; skips without Prometheus."""
    if not tool("prometheus"):
        pytest.skip(MISSING)
    with live() as running:
        yield running
