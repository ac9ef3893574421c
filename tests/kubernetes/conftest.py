"""One cluster for all tests, which are collected only when tests/kubernetes/run has built what it is made of."""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from kubernetes.cluster import Cluster, missing, missing_node
from kubernetes.release import Release, define

_numbers = count(1)
collect_ignore_glob = [] if "KUBERNETES_IMAGE" in os.environ else ["test_*.py"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With the custom resources that the chart can make, and our image if there is a node."""
    if why := missing():
        pytest.skip(why)
    with Cluster(tmp_path_factory.mktemp("kubernetes") / "cluster") as cluster:
        define(cluster)
        if cluster.has_node:
            cluster.import_image(Path(os.environ["KUBERNETES_IMAGE"]))
        yield cluster


@pytest.fixture
def node(cluster: Cluster) -> Cluster:
    """The cluster, if pods run in it."""
    if not cluster.has_node:
        pytest.skip(missing_node())
    return cluster


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A new one, in which the strictest of Kubernetes' standards holds."""
    name = f"test-{next(_numbers)}"
    cluster.kubectl("create", "namespace", name)
    standard = "pod-security.kubernetes.io"
    cluster.kubectl("label", "namespace", name, f"{standard}/enforce=restricted", f"{standard}/warn=restricted")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def release(node: Cluster, namespace: str) -> Iterator[Release]:
    """The chart, to be installed there."""
    release = Release(node, namespace)
    yield release
    release.uninstall()
