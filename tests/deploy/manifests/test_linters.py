"""Linters on deploy/: helm, two schema validators, checkov, hadolint and yamllint."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from deploy.manifests.charts import CHART, LINTERS, ROOT, SCENARIOS, TOOLS, kustomized, needs, rendered, resources, run

VERSIONS = ["1.30", "1.34", "1.37"]  # of Kubernetes: the oldest that the chart supports, one between, the newest
PLAIN = {"plain": "deploy/kubernetes/base", "overlay": "deploy/kubernetes/overlay"}
CUSTOM = {
    "BackendTLSPolicy",
    "Certificate",
    "GRPCRoute",
    "PodMonitor",
    "PrometheusRule",
    "ScaledObject",
    "ServiceMonitor",
}

# Intended findings of checkov, by check and kind, with the reason.
INTENDED = {
    ("CKV_K8S_11", "Deployment"): "no CPU limit, because throttling delays first chunks; resources.limits can set one",
    ("CKV_K8S_11", "Pod"): "nor has the test hook",
    (
        "CKV_K8S_15",
        "Deployment",
    ): "IfNotPresent, because a tag never changes its version, and image.digest overrides it",
    ("CKV_K8S_15", "Pod"): "the test hook does, too",
    ("CKV_K8S_43", "Deployment"): "registry and digest are the user's choice: image.digest",
    ("CKV_K8S_43", "Pod"): "the test hook's image is, too",
    ("CKV_K8S_8", "Pod"): "the test hook exits by itself, so there is nothing to probe",
    ("CKV_K8S_9", "Pod"): "the same",
    ("CKV2_K8S_6", "Pod"): "the test hook runs for a second, and nothing listens in it",
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_helm_lints(scenario: str, helm: str) -> None:
    done = run(TOOLS / "bin" / helm, "lint", "--strict", CHART, f"--values={SCENARIOS[scenario]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_helm_3_renders_the_same(scenario: str) -> None:
    needs("helm3")

    def sorted_(helm: str) -> list[str]:
        return sorted(json.dumps(each, sort_keys=True) for each in resources(rendered(scenario, helm=helm)))

    assert sorted_("helm3") == sorted_("helm")


@cache
def texts() -> dict[str, str]:
    """Return all manifests by name: those of the scenarios, and the plain ones from kustomize."""
    return {name: rendered(name) for name in SCENARIOS} | {name: kustomized(path) for name, path in PLAIN.items()}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*SCENARIOS, *PLAIN])
def test_the_schemas_of_kubernetes(name: str, version: str) -> None:
    done = run(LINTERS / "kubernetes-validate", "-k", version, "--strict", "-", input=texts()[name])
    assert done.returncode == 0, done.stdout + done.stderr
    # It warns of custom resources, which the next test checks.
    warned = re.findall(r"WARN .*schema for kind (\w+) ", done.stdout + done.stderr)
    assert (done.stdout + done.stderr).count("WARN") == len(warned)
    assert set(warned) <= CUSTOM


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*SCENARIOS, *PLAIN])
def test_the_schemas_of_custom_resources_too(name: str, version: str) -> None:
    kubeconform = TOOLS / "bin/kubeconform"
    if not kubeconform.exists():
        pytest.skip("kubeconform: not built without Go; install Go, then run `make test-deploy`")
    done = run(
        kubeconform,
        "-strict",
        "-output=json",
        "-summary",
        f"-kubernetes-version={version}.0",
        f"-schema-location={TOOLS}/schemas/"
        "{{.NormalizedKubernetesVersion}}{{.StrictSuffix}}/{{.ResourceKind}}{{.KindSuffix}}.json",
        f"-schema-location={TOOLS}/schemas/{{{{.Group}}}}_{{{{.ResourceKind}}}}_{{{{.ResourceAPIVersion}}}}.json",
        input=texts()[name],
    )
    seen = json.loads(done.stdout)
    assert not seen["resources"], seen["resources"]
    assert seen["summary"] == {
        "valid": len(resources(texts()[name])),
        "invalid": 0,
        "errors": 0,
        "skipped": 0,
    }


def test_checkov_finds_only_intended_deviations(tmp_path: Path) -> None:
    for name, text in texts().items():
        (tmp_path / f"{name}.yaml").write_text(text)
    done = run(
        LINTERS / "checkov", "--skip-download", "--output=json", "--framework=kubernetes", f"--directory={tmp_path}"
    )
    report = json.loads(done.stdout)
    assert report["summary"]["passed"] > 500
    assert report["summary"]["parsing_errors"] == 0
    found = set()
    for each in report["results"]["failed_checks"]:
        kind = each["resource"].split(".")[0]
        found.add((each["check_id"], kind))
    assert found == INTENDED.keys()


def test_the_dockerfile() -> None:
    done = run(LINTERS / "hadolint", "--failure-threshold=style", ROOT / "deploy/Dockerfile")
    assert done.returncode == 0, done.stdout
    # CKV_DOCKER_7 requires a tag, and does not see the one in the build argument.
    skips = "--skip-check=CKV_DOCKER_7"
    done = run(LINTERS / "checkov", "--skip-download", "--compact", skips, "--file", ROOT / "deploy/Dockerfile")
    assert done.returncode == 0, done.stdout


def test_the_compose_file() -> None:
    schema = "--builtin-schema=vendor.compose-spec"
    done = run(LINTERS / "check-jsonschema", schema, ROOT / "deploy/compose/compose.yaml")
    assert done.returncode == 0, done.stdout


def test_yaml_is_tidy() -> None:
    rules = "{extends: default, rules: {line-length: {max: 125}, document-start: disable, braces: disable,"
    rules += " brackets: disable, comments: {min-spaces-from-content: 1}}}"
    paths = ["deploy/compose", "deploy/examples", "deploy/prometheus/prometheus.yaml"]
    chart = [CHART / "Chart.yaml", CHART / "values.yaml", CHART / "ci"]
    done = run(LINTERS / "yamllint", "--strict", f"--config-data={rules}", *(ROOT / path for path in paths), *chart)
    assert done.returncode == 0, done.stdout


def test_plain_manifests_are_fresh() -> None:
    done = run(ROOT / "deploy/kubernetes/base/render", "--check")
    assert done.returncode == 0, done.stderr
