"""The chart, rendered by helm for each scenario of its folder ci/."""

import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy/helm/chatrpc"
TOOLS = Path(os.environ.get("DEPLOY_TOOLS", ROOT / ".tools/deploy"))
LINTERS = ROOT / ".venv-deploy/bin"
NAMESPACE = "chat"
SCENARIOS = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}

Resource = dict[str, Any]


def run(program: Path | str, *arguments: Path | str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program and return its output; the caller checks the exit code."""
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=50, check=False, **options)


def needs(program: str) -> None:
    """Skip the test if the program is not installed."""
    if not (TOOLS / "bin" / program).exists():
        install = "on Linux with x86-64 run tests/deploy/manifests/install"
        pytest.skip(f"{program}: not in .tools/deploy/bin; {install}")


def template(*arguments: str, helm: str = "helm", name: str = "chatrpc") -> subprocess.CompletedProcess[str]:
    return run(TOOLS / "bin" / helm, "template", name, CHART, f"--namespace={NAMESPACE}", *arguments)


@cache
def rendered(scenario: str, *arguments: str, helm: str = "helm", name: str = "chatrpc") -> str:
    """Return the manifests of the scenario for a release of this name."""
    done = template(f"--values={SCENARIOS[scenario]}", *arguments, helm=helm, name=name)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def kustomized(folder: str) -> str:
    """Return the manifests that kubectl makes of a folder of the repository."""
    done = run(TOOLS / "bin/kubectl", "kustomize", ROOT / folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def resources(text: str) -> list[Resource]:
    return [each for each in yaml.safe_load_all(text) if each]


class Release:
    """The resources of one scenario, or of the given text."""

    def __init__(self, scenario: str, *arguments: str, text: str | None = None) -> None:
        self.scenario = scenario
        self.all = resources(rendered(scenario, *arguments) if text is None else text)

    def of(self, kind: str) -> list[Resource]:
        return [each for each in self.all if each["kind"] == kind]

    def one(self, kind: str, suffix: str = "") -> Resource:
        (found,) = (each for each in self.of(kind) if each["metadata"]["name"].endswith(suffix))
        return found

    @property
    def deployment(self) -> Resource:
        return self.one("Deployment")

    @property
    def pod(self) -> Resource:
        """The spec of the Deployment's pods."""
        return dict(self.deployment["spec"]["template"]["spec"])

    @property
    def container(self) -> Resource:
        """The service's container."""
        return dict(self.pod["containers"][0])

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container["ports"]}

    @property
    def config(self) -> dict[str, Any]:
        """The service's settings file."""
        (name,) = (volume["configMap"]["name"] for volume in self.pod["volumes"] if volume["name"] == "config")
        (found,) = (each for each in self.of("ConfigMap") if each["metadata"]["name"] == name)
        return dict(yaml.safe_load(found["data"]["chatrpc.yaml"]))

    @staticmethod
    def containers(pod: Resource) -> Sequence[Resource]:
        """Return all containers in the spec of a pod."""
        return [*pod.get("initContainers", []), *pod["containers"]]

    def pods(self) -> Sequence[Resource]:
        """Return the specs of all pods of the release."""
        return [self.pod, *(each["spec"] for each in self.of("Pod"))]
