"""The chart in a cluster: installed, upgraded, called."""

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
# What tests/deploy/image/build makes. Short waits, so that a rollout takes seconds; both still follow each other.
VALUES = {
    "image": {"repository": "localhost/chatrpc", "tag": "test", "pullPolicy": "Never"},
    "fullnameOverride": "chatrpc",
    "preStopSeconds": 2,
    "config": {"drain": {"delay_seconds": 2, "grace_seconds": 30}},
    # Three have to fit into two cores during a rollout.
    "resources": {"requests": {"cpu": "100m"}},
}


def _define(cluster: Cluster) -> None:
    """Gives it the kinds of resources that are not Kubernetes' own."""
    paths = [path for path in DEFINITIONS.glob("*.yaml") if path.stem.partition("_")[2] in CUSTOM]
    assert len(paths) == len(CUSTOM), "tests/deploy/manifests/install makes them"
    definitions = [yaml.safe_load(path.read_text()) for path in paths]
    for definition in definitions:
        # The group is protected: who defines such has to say that it was agreed upon.
        agreed = {"api-approved.kubernetes.io": "unapproved, for a test"}
        definition["metadata"].setdefault("annotations", {}).update(agreed)
    text = yaml.safe_dump_all(definitions)
    cluster.kubectl("apply", "--server-side", "--filename=-", input=text)
    names = [definition["metadata"]["name"] for definition in definitions]
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", *names)


@contextmanager
def started(folder: Path, **options: bool) -> Iterator[Cluster]:
    """With the custom resources that the chart can make, and our image if there is a node."""
    if why := missing():
        pytest.skip(why)
    with Cluster(folder, **options) as cluster:
        _define(cluster)
        if cluster.has_node:
            cluster.import_image(Path(os.environ["KUBERNETES_IMAGE"]))
        yield cluster


@contextmanager
def new_namespace(cluster: Cluster) -> Iterator[str]:
    """One in which the strictest of Kubernetes' standards holds."""
    name = f"test-{next(_numbers)}"
    cluster.kubectl("create", "namespace", name)
    standard = "pod-security.kubernetes.io"
    cluster.kubectl("label", "namespace", name, f"{standard}/enforce=restricted", f"{standard}/warn=restricted")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


class Release:
    """The chart under the name `chatrpc` in a namespace of its own."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.program = "helm"
        self._folder = cluster.folder / namespace
        self._folder.mkdir()

    def helm(self, *arguments: str) -> str:
        """What helm prints. Raises AssertionError with what it complains about, and how the pods are."""
        command = [self.program, f"--namespace={self.namespace}", *arguments]
        environment = self.cluster.environment
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.describe()}"
        return done.stdout

    def install(self, **values: Any) -> str:
        """Installs or upgrades it, and waits until its pods are ready; gives what helm prints, the notes at its end."""
        file = self._folder / "values.yaml"
        file.write_text(yaml.safe_dump(_merged(VALUES, values)))
        return self.helm("upgrade", "--install", "chatrpc", str(CHART), f"--values={file}", "--wait", "--timeout=240s")

    def uninstall(self) -> None:
        self.helm("uninstall", "chatrpc", "--ignore-not-found", "--wait=false")

    def describe(self) -> str:
        """All that Kubernetes and the pods can tell."""
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
        """Those of the service that are not on their way out."""
        found = self.get("pods", "--selector=app.kubernetes.io/name=chatrpc")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def secret(self, name: str, kind: str = "Opaque", **contents: str) -> None:
        """Makes it, or changes it; keys with `_` for a dot."""
        data = {key.replace("_", "."): content for key, content in contents.items()}
        self.apply({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": {"name": name}, "stringData": data})

    def target(self, service: str = "chatrpc-headless", port: int = 50051) -> str:
        """Where callers in the cluster find it: by the name, which the cluster's own DNS resolves."""
        return f"dns://{self.cluster.address}:53/{service}.{self.namespace}.svc.cluster.local:{port}"

    async def until(self, holds: Callable[[], Any], what: str, seconds: float = 120) -> Any:
        """The same as the cluster's, beside what else this process does."""
        return await asyncio.to_thread(self.cluster.until, holds, what, seconds)


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    merged = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
