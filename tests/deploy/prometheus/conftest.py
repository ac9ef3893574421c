"""One live Prometheus for all tests of this folder."""

from collections.abc import Iterator

import pytest

from deploy.prometheus.live import MISSING, Live, live, tool


@pytest.fixture(scope="session")
def live_prometheus() -> Iterator[Live]:
    """See `live`; skips where there is no Prometheus."""
    if not tool("prometheus"):
        pytest.skip(MISSING)
    with live() as running:
        yield running
