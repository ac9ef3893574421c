"""Installation and upgrade of the chart in a cluster."""

import asyncio
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.cluster import Cluster, missing
from deploy.manifests.charts import CHART, TOOLS

CUSTOM = (
    "backendtlspolicies",
    "certificates",
    "grpcroutes",
    "podmonitors",
    "prometheusrules",
    "scaledobjects",
    "servicemonitors",
)
DEFINITIONS = TOOLS / "crds"
_numbers = count(1)
# The image of tests/deploy/image/build. Short waits, so that a rollout takes seconds.
VALUES = {
    "image": {"repository": "localhost/chatrpc", "tag": "test", "pullPolicy": "Never"},
    "fullnameOverride": "chatrpc",
    "preStopSeconds": 2,
    "config": {"drain": {"delay_seconds": 2, "grace_seconds": 30}},
    # Three pods must fit into two cores during a rollout.
    "resources": {"requests": {"cpu": "100m"}},
}


def _define(cluster: Cluster) -> None:
    """Define the custom resources of the chart."""
    paths = [path for path in DEFINITIONS.glob("*.yaml") if path.stem.partition("_")[2] in CUSTOM]
    assert len(paths) == len(CUSTOM), "run tests/deploy/manifests/install"
    definitions = [yaml.safe_load(path.read_text()) for path in paths]
    for definition in definitions:
        # Definitions in a protected group need this annotation.
        agreed = {"api-approved.kubernetes.io": "unapproved, for a test"}
        definition["metadata"].setdefault("annotations", {}).update(agreed)
    text = yaml.safe_dump_all(definitions)
    cluster.kubectl("apply", "--server-side", "--filename=-", input=text)
    names = [definition["metadata"]["name"] for definition in definitions]
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", *names)


@contextmanager
def started(folder: Path, **options: bool) -> Iterator[Cluster]:
    """Start a cluster with the chart's custom resources, and with our image if it has a node."""
    if why := missing():
        pytest.skip(why)
    with Cluster(folder, **options) as cluster:
        _define(cluster)
        if cluster.has_node:
            cluster.import_image(Path(os.environ["KUBERNETES_IMAGE"]))
        yield cluster


@contextmanager
def new_namespace(cluster: Cluster) -> Iterator[str]:
    """Create a namespace that enforces Kubernetes' strictest standard."""
    name = f"test-{next(_numbers)}"
    cluster.kubectl("create", "namespace", name)
    standard = "pod-security.kubernetes.io"
    cluster.kubectl("label", "namespace", name, f"{standard}/enforce=restricted", f"{standard}/warn=restricted")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


class Release:
    """The chart as release `chatrpc` in its own namespace."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.program = "helm"
        self._folder = cluster.folder / namespace
        self._folder.mkdir()

    def helm(self, *arguments: str) -> str:
        """Run helm and return its output. Raises AssertionError with its errors, events and logs."""
        command = [self.program, f"--namespace={self.namespace}", *arguments]
        environment = self.cluster.environment
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.describe()}"
        return done.stdout

    def install(self, **values: Any) -> str:
        """Install or upgrade, wait until the pods are ready, and return helm's output, which ends with the notes."""
        file = self._folder / "values.yaml"
        file.write_text(yaml.safe_dump(_merged(VALUES, values)))
        return self.helm("upgrade", "--install", "chatrpc", str(CHART), f"--values={file}", "--wait", "--timeout=240s")

    def uninstall(self) -> None:
        self.helm("uninstall", "chatrpc", "--ignore-not-found", "--wait=false")

    def describe(self) -> str:
        """Return the events and the pods' logs."""
        selector = "--selector=app.kubernetes.io/instance=chatrpc"
        events = self.kubectl("get", "events", "--sort-by=.lastTimestamp")
        return events + self.kubectl("logs", selector, "--prefix", "--tail=20", "--all-containers", "--ignore-errors")

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.cluster.kubectl(f"--namespace={self.namespace}", *arguments, **options)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", "--output=json", *arguments))

    def apply(self, *resources: dict[str, Any]) -> None:
        self.kubectl("apply", "--server-side", "--filename=-", input=yaml.safe_dump_all(resources))

    def pods(self) -> list[dict[str, Any]]:
        """Return the service's pods that are not terminating."""
        found = self.get("pods", "--selector=app.kubernetes.io/name=chatrpc")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def secret(self, name: str, kind: str = "Opaque", **contents: str) -> None:
        """Create or change a Secret; `_` in a key stands for a dot."""
        data = {key.replace("_", "."): content for key, content in contents.items()}
        self.apply({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": {"name": name}, "stringData": data})

    def target(self, service: str = "chatrpc-headless", port: int = 50051) -> str:
        """Return the target of callers in the cluster: the name, resolved by the cluster's DNS."""
        return f"dns://{self.cluster.address}:53/{service}.{self.namespace}.svc.cluster.local:{port}"

    async def until(self, holds: Callable[[], Any], what: str, seconds: float = 120) -> Any:
        """Call `Cluster.until` in a thread."""
        return await asyncio.to_thread(self.cluster.until, holds, what, seconds)


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    merged = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
