"""One cluster for all tests, which are collected only when tests/deploy/kubernetes/run has built what it is made of."""

import os
from collections.abc import Iterator

import pytest

from deploy.kubernetes.cluster import Cluster, missing_node
from deploy.kubernetes.release import Release, new_namespace, started

collect_ignore_glob = [] if "KUBERNETES_IMAGE" in os.environ else ["test_*.py"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The one for all tests; see `started`."""
    with started(tmp_path_factory.mktemp("kubernetes") / "cluster") as cluster:
        yield cluster


@pytest.fixture
def node(cluster: Cluster) -> Cluster:
    """The cluster, if pods run in it."""
    if not cluster.has_node:
        pytest.skip(missing_node())
    return cluster


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A new one for the test."""
    with new_namespace(cluster) as name:
        yield name


@pytest.fixture
def release(node: Cluster, namespace: str) -> Iterator[Release]:
    """The chart, to be installed there."""
    release = Release(node, namespace)
    yield release
    release.uninstall()
