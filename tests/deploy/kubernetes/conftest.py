"""One cluster for all tests; collected only after tests/deploy/kubernetes/run has built its programs."""

import os
from collections.abc import Iterator

import pytest

from deploy.kubernetes.cluster import Cluster, missing_node
from deploy.kubernetes.release import Release, new_namespace, started

collect_ignore_glob = [] if "KUBERNETES_IMAGE" in os.environ else ["test_*.py"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster for all tests; see `started`."""
    with started(tmp_path_factory.mktemp("kubernetes") / "cluster") as cluster:
        yield cluster


@pytest.fixture
def node(cluster: Cluster) -> Cluster:
    """The cluster; skips if it has no node."""
    if not cluster.has_node:
        pytest.skip(missing_node())
    return cluster


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A new namespace for the test."""
    with new_namespace(cluster) as name:
        yield name


@pytest.fixture
def release(node: Cluster, namespace: str) -> Iterator[Release]:
    """The chart, for installation in that namespace."""
    release = Release(node, namespace)
    yield release
    release.uninstall()
