"""Tests of the manifests; collected only after tests/deploy/manifests/run has installed their tools."""

import os

import pytest

from deploy.manifests.charts import needs

collect_ignore_glob = [] if "DEPLOY_TOOLS" in os.environ else ["test_*.py"]


@pytest.fixture(params=["helm", "helm3"])
def helm(request: pytest.FixtureRequest) -> str:
    """The name of each supported helm."""
    needs(request.param)
    return str(request.param)
