"""Connections to and from the pods in a cluster that enforces NetworkPolicies."""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy.kubernetes.cluster import Cluster
from deploy.kubernetes.node import METADATA
from deploy.kubernetes.release import Release, new_namespace, started
from deploy.manifests.charts import Release as Rendered

pytestmark = pytest.mark.timeout(400)

PYTHON = "/opt/chatrpc/bin/python"
WEB = 8000
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
    print("open")
except OSError:
    print("shut")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of its own, because other tests call from outside, which the policies block."""
    with started(tmp_path_factory.mktemp("network") / "cluster", with_policies=True) as cluster:
        yield cluster


@pytest.fixture
def elsewhere(node: Cluster) -> Iterator[str]:
    """A namespace other than the release's."""
    with new_namespace(node) as name:
        yield name


class Pod:
    """A pod that can try connections."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self._cluster, self._in, self.name = cluster, f"--namespace={namespace}", name

    @property
    def address(self) -> str:
        return str(self._cluster.get(self._in, "pod", self.name)["status"]["podIP"])

    def reaches(self, host: str, port: int) -> bool:
        output = self._cluster.kubectl(self._in, "exec", self.name, "--", PYTHON, "-c", CONNECT, host, str(port))
        return {"open": True, "shut": False}[output.strip()]


def web_server(release: Release, namespace: str) -> Pod:
    """Start a pod that serves only HTTP."""
    hook = Rendered("default").one("Pod")["spec"]  # which is as restricted as the namespace requires
    (model,) = hook["containers"]
    container = {
        "name": "web",
        "image": "localhost/chatrpc:test",
        "imagePullPolicy": "Never",
        "command": [PYTHON, "-m", "http.server", str(WEB)],
        "resources": model["resources"],
        "securityContext": model["securityContext"],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": namespace, "labels": {"app": "web"}},
        "spec": {
            "securityContext": hook["securityContext"],
            "containers": [container],
            "terminationGracePeriodSeconds": 0,
        },
    }
    in_ = f"--namespace={namespace}"
    release.cluster.kubectl(in_, "apply", "--server-side", "--filename=-", input=json.dumps(pod))
    release.cluster.kubectl(in_, "wait", "--for=condition=Ready", "--timeout=60s", "pod/web")
    return Pod(release.cluster, namespace, "web")


def install(release: Release, **policy: Any) -> Pod:
    """Install with this policy; return the only pod."""
    release.install(echo={"enabled": True}, replicas=1, networkPolicy=policy)
    (pod,) = release.pods()
    return Pod(release.cluster, release.namespace, pod["metadata"]["name"])


def eventually(cluster: Cluster, seen: Callable[[], dict[str, bool]], expected: dict[str, bool]) -> None:
    """Wait for the expected connections, because the network needs a moment to apply a policy."""
    last: list[dict[str, bool]] = []

    def holds() -> bool:
        last[:] = [seen()]
        return last == [expected]

    try:
        cluster.until(holds, "the policy is in force", seconds=30)
    except TimeoutError:
        assert last == [expected]


def test_ingress_of_callers_and_scrapers(release: Release, elsewhere: str) -> None:
    service = install(release, enabled=False)
    same, other = web_server(release, release.namespace), web_server(release, elsewhere)
    address = service.address

    def outside() -> bool:
        try:
            socket.create_connection((address, 50051), 2).close()
        except OSError:
            return False
        return True

    def seen() -> dict[str, bool]:
        return {
            "same namespace calls": same.reaches(address, 50051),
            "another calls": other.reaches(address, 50051),
            "outside calls": outside(),
            "same namespace scrapes": same.reaches(address, 9464),
            "another scrapes": other.reaches(address, 9464),
        }

    everything = dict.fromkeys(seen(), True)
    eventually(release.cluster, seen, everything)

    install(release, enabled=True)
    eventually(release.cluster, seen, everything | {"another calls": False, "outside calls": False})
    assert "Phase:          Succeeded" in release.helm("test", "chatrpc")

    callers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": elsewhere}}}]
    install(release, callers=callers, scrapers=[{"podSelector": {"matchLabels": {"app": "web"}}}])
    expected = {"another calls": True, "same namespace scrapes": True}
    eventually(release.cluster, seen, dict.fromkeys(everything, False) | expected)
    assert "Phase:          Succeeded" in release.helm("test", "chatrpc"), "our own hook is always allowed"


def test_egress_of_the_pods(release: Release, elsewhere: str) -> None:
    """Upstreams in the cluster and outside, and DNS, but never the clouds' metadata service, which has keys."""
    service = install(release, enabled=False)
    other = web_server(release, elsewhere).address
    with socket.create_server((release.cluster.host, 0)) as upstream:
        port = upstream.getsockname()[1]

        def seen() -> dict[str, bool]:
            return {
                "a pod elsewhere": service.reaches(other, WEB),
                "outside": service.reaches(release.cluster.host, port),
                "DNS": service.reaches(release.cluster.address, 53),
                "keys of the cloud": service.reaches(METADATA, 80),
                "DNS of the cloud": service.reaches(METADATA, 53),
            }

        everything = dict.fromkeys(seen(), True)
        eventually(release.cluster, seen, everything)

        install(release, enabled=True)
        eventually(release.cluster, seen, everything | {"keys of the cloud": False})

        only = {"to": [{"ipBlock": {"cidr": f"{release.cluster.host}/32"}}], "ports": [{"port": port}]}
        install(release, egress=[only])
        eventually(release.cluster, seen, dict.fromkeys(everything, False) | {"outside": True})
