"""A real API server accepts each scenario of the chart, strictly, under the standard "restricted"."""

import json
from subprocess import CalledProcessError

import pytest
import yaml

from deploy.kubernetes.cluster import ROOT, Cluster
from deploy.manifests.charts import SCENARIOS, Release, rendered

PRIORITY_CLASS = """{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: important}, value: 1000}"""
STRICT = ("apply", "--server-side", "--validate=strict", "--filename=-")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_accepts_every_scenario(cluster: Cluster, namespace: str, scenario: str) -> None:
    text = rendered(scenario, f"--namespace={namespace}")
    cluster.kubectl(*STRICT, input=PRIORITY_CLASS)  # for ci/full-values.yaml
    cluster.kubectl(*STRICT, input=text)
    kept = {kind: cluster.get(f"--namespace={namespace}", kind)["items"] for kind in ("deployments", "services")}
    assert [len(found) for found in kept.values()] == [1, 2]


@pytest.mark.parametrize(("folder", "replicas"), [("deploy/kubernetes/base", 2), ("deploy/kubernetes/overlay", 3)])
def test_it_accepts_the_plain_manifests(cluster: Cluster, folder: str, replicas: int) -> None:
    try:
        cluster.kubectl("apply", "--server-side", "--validate=strict", "--kustomize", str(ROOT / folder))
        (deployment,) = cluster.get("--namespace=chatrpc", "deployments")["items"]
        assert deployment["spec"]["replicas"] == replicas
    finally:
        cluster.kubectl("delete", "--kustomize", str(ROOT / folder), "--wait=true")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_its_pods_meet_the_strictest_standard(cluster: Cluster, namespace: str, scenario: str) -> None:
    """The standard applies to pods; the Deployment is accepted in any case."""
    for spec in Release(scenario).pods():
        spec = spec | {"serviceAccountName": "default", "imagePullSecrets": []}
        if spec.pop("priorityClassName", None):
            spec |= {"tolerations": []}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "test", "namespace": namespace},
            "spec": spec,
        }
        spec["topologySpreadConstraints"] = []
        cluster.kubectl(*STRICT, "--dry-run=server", input=json.dumps(pod))


def test_the_standard_is_in_force(cluster: Cluster, namespace: str) -> None:
    spec = {"containers": [{"name": "a", "image": "b"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "test", "namespace": namespace}, "spec": spec}
    with pytest.raises(CalledProcessError) as raised:
        cluster.kubectl(*STRICT, "--dry-run=server", input=json.dumps(pod))
    assert 'violates PodSecurity "restricted' in raised.value.stderr


@pytest.mark.parametrize(
    ("kind", "scenario", "wrong"),
    [
        ("Deployment", "default", "revisionHistoryLimits"),
        ("PodMonitor", "tls", "sampleLimits"),
        ("ScaledObject", "keda", "maxReplicas"),
        ("GRPCRoute", "gateway", "backends"),
        ("BackendTLSPolicy", "gateway-tls", "targetReferences"),
        ("Certificate", "tls", "dnsName"),
    ],
)
def test_it_knows_the_fields_of_all_kinds(
    cluster: Cluster, namespace: str, kind: str, scenario: str, wrong: str
) -> None:
    """The other tests are meaningful only if the server rejects unknown fields."""
    resource = Release(scenario).one(kind)
    resource["metadata"]["namespace"] = namespace
    resource["spec"][wrong] = 1
    with pytest.raises(CalledProcessError) as raised:
        cluster.kubectl(*STRICT, "--dry-run=server", input=yaml.safe_dump(resource))
    assert wrong in raised.value.stderr
