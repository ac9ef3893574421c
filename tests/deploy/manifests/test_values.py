"""Invalid values, which the chart reports by name before any installation; and the notes."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from chatrpc.v1 import chat_service_pb2
from chatrpc_server.settings import Settings, describe, load
from deploy.manifests.charts import (
    CHART,
    NAMESPACE,
    ROOT,
    SCENARIOS,
    TOOLS,
    Release,
    rendered,
    resources,
    run,
    template,
)

ROUTE = ("grpcRoute.enabled=true", "grpcRoute.parentRefs[0].name=internal")
REFUSED = {
    "an unknown value": (["replica=2"], "additional properties 'replica' not allowed"),
    "an unknown setting": (["config.upstream.base_ur=x"], "at '/config/upstream': additional properties 'base_ur'"),
    "out of bounds": (["config.workers=0"], "at '/config/workers': minimum: got 0, want 1"),
    "an unknown choice": (["config.log.level=loud"], "at '/config/log/level': value must be one of 'debug', 'info'"),
    "another type": (["config.reflection=maybe"], "at '/config/reflection': got string, want null or boolean"),
    "a setting of the chart": (["config.listen=0.0.0.0:1"], "at '/config': additional properties 'listen' not allowed"),
    "a key in the values": (["config.upstream.api_key=sk-1"], "additional properties 'api_key' not allowed"),
    "drain without its seconds": (["config.drain=null"], "at '/config': missing property 'drain'"),
    "values of an older chart": (["config=null"], "missing property 'config'"),
    "an invalid port": (["ports.grpc=70000"], "at '/ports/grpc': maximum: got 70,000, want 65,535"),
    "one port twice": (["ports.metrics=50051"], "ports.grpc: is 50051 like ports.metrics; use another port"),
    "one port twice, with TLS": (
        ["tls.secret=x", "ports.metrics=50052"],
        "ports.health: is 50052 like ports.metrics",
    ),
    "the embedded upstream's port": (
        ["echo.enabled=true", "ports.grpc=8080"],
        "ports.grpc: is 8080 like the embedded upstream's",
    ),
    "an invalid full name": (["fullnameOverride=Chat.RPC"], "at '/fullnameOverride'"),
    "an invalid job": (["monitoring.job=x #y"], "at '/monitoring/job'"),
    "more than 100 percent": (["podDisruptionBudget.maxUnavailable=150%"], "at '/podDisruptionBudget/maxUnavailable'"),
    "an address with /chat/completions": (
        ["config.upstream.base_url=https://api.openai.com/v1/chat/completions"],
        "at '/config/upstream/base_url'",
    ),
    "a number in the environment": (["extraEnv[0].name=A", "extraEnv[0].value=4"], "at '/extraEnv/0/value'"),
    "an issuer without a name": (
        ["tls.secret=x", "tls.certificate.enabled=true", "tls.certificate.issuerRef.kind=ClusterIssuer"],
        "tls.certificate.issuerRef: has no name; set it",
    ),
    "callers' authority without TLS": (
        ["tls.clientCa.secret=ca"],
        "tls.clientCa.secret: has no effect without tls.secret",
    ),
    "a certificate without a Secret": (
        ["tls.certificate.enabled=true"],
        "tls.secret: is required with tls.certificate",
    ),
    "a certificate without an issuer": (
        ["tls.certificate.enabled=true", "tls.secret=x"],
        "tls.certificate.issuerRef: has no name; set it, such as {kind: ClusterIssuer, name: internal}",
    ),
    "insecure without allow_insecure": (
        ["config.allow_insecure=false"],
        "config.allow_insecure: is false, but callers are not authenticated; set tls.clientCa.secret",
    ),
    "KEDA without Prometheus": (
        ["autoscaling.enabled=true", "autoscaling.signal=keda"],
        "autoscaling.prometheus: is required with autoscaling.signal keda",
    ),
    "minimum above maximum": (
        ["autoscaling.enabled=true", "autoscaling.minReplicas=9", "autoscaling.maxReplicas=3"],
        "autoscaling.minReplicas: is above autoscaling.maxReplicas",
    ),
    "a route without a Gateway": (["grpcRoute.enabled=true"], "grpcRoute.parentRefs: is empty"),
    "a Gateway without access": ([*ROUTE], "networkPolicy.callers: is required with grpcRoute"),
    "a Gateway without an authority": (
        [*ROUTE, "networkPolicy.enabled=false", "tls.secret=x"],
        "grpcRoute.backendTlsPolicy.caCertificateRefs: is required with tls.secret",
    ),
    "an incomplete authority": (
        ["grpcRoute.backendTlsPolicy.caCertificateRefs[0].kind=ConfigMap"],
        "missing properties 'group', 'name'",
    ),
    "a CPU share without a request": (
        ["autoscaling.enabled=true", "resources.requests.cpu=null"],
        "resources.requests.cpu: is required with autoscaling.signal cpu",
    ),
    "rules without a job": (["monitoring.rules=always", "monitoring.scrape=none"], "monitoring.job: is required"),
    "an invalid address": (["config.upstream.base_url=models.example"], "at '/config/upstream/base_url'"),
    "an address with a key": (["config.upstream.base_url=https://me:sk@a.example"], "at '/config/upstream/base_url'"),
    "an invalid name": (["config.upstream.name=Big One"], "at '/config/upstream/name'"),
    "an invalid collector": (["config.tracing.endpoint=collector:4318"], "at '/config/tracing/endpoint'"),
    "backoff with its bounds swapped": (
        ["config.upstream.initial_backoff_seconds=4", "config.upstream.max_backoff_seconds=3"],
        "config.upstream.max_backoff_seconds: is below initial_backoff_seconds; set it to at least 4",
    ),
    **{
        f"{name} in the environment": (
            [f"extraEnv[0].name=CHATRPC_{name}"],
            f"extraEnv: CHATRPC_{name} is not allowed",
        )
        for name in (
            *("CONFIG", "LISTEN", "HEALTH_LISTEN", "METRICS_LISTEN", "ALLOW_INSECURE"),
            *("DRAIN__GRACE_SECONDS", "TLS__CERT_FILE"),
        )
    },
    "a variable without a name": (["extraEnv[0].value=x"], "at '/extraEnv/0': missing property 'name'"),
    "an invalid digest": (["image.digest=latest"], "at '/image/digest'"),
}


@pytest.mark.parametrize(("values", "complaint"), REFUSED.values(), ids=REFUSED)
def test_invalid_values_are_reported(values: list[str], complaint: str) -> None:
    done = template(*(f"--set={value}" for value in values))
    assert done.returncode != 0
    assert complaint in done.stderr


def paths(values: Any, schema: dict[str, Any]) -> Iterator[str]:
    """Yield the paths of all named values, and of the objects that hold them."""
    for name, each in values.items():
        if name == "config":  # the service adds its defaults
            continue
        yield name
        inner = schema["properties"][name]
        if "required" in inner:
            yield from (f"{name}.{path}" for path in paths(each, inner))


VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
PATHS = list(paths(VALUES, json.loads((CHART / "values.schema.json").read_text())))


def default(path: str) -> Any:
    return reduce(lambda values, name: values[name], path.split("."), VALUES)


@pytest.mark.parametrize("path", PATHS)
def test_a_missing_value_is_reported_unless_it_is_empty(path: str) -> None:
    """A value is missing with `--reuse-values` of an older chart, or if all entries of a key are commented out."""
    missing = template(f"--set={path}=null")
    if default(path) in ("", [], {}):
        assert missing.returncode == 0, missing.stderr
        assert missing.stdout == rendered("default")
        return
    assert missing.returncode != 0
    where, _, name = path.rpartition(".")
    assert f"at '{where and '/' + where.replace('.', '/')}': missing property '{name}'" in missing.stderr


def test_null_is_empty_too(tmp_path: Path, helm: str) -> None:
    """`--reuse-values` keeps null, while `--set` removes the value; a value that the chart lacks is like the former."""
    empty = [path for path in PATHS if default(path) in ("", [], {})]
    assert len(empty) > 20
    chart, values, nulls = tmp_path / "chart", deepcopy(VALUES), {}
    for path in [*empty, "resources.limits"]:
        *parents, name = path.split(".")
        reduce(lambda each, parent: each[parent], parents, values).pop(name)
        reduce(lambda each, parent: each.setdefault(parent, {}), parents, nulls)[name] = None
    shutil.copytree(CHART, chart)
    (chart / "values.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "nulls.yaml").write_text(yaml.safe_dump(nulls))
    options = ("--set=autoscaling.enabled=true", f"--values={tmp_path}/nulls.yaml")
    done = run(TOOLS / "bin" / helm, "template", "chatrpc", chart, f"--namespace={NAMESPACE}", *options)
    assert done.returncode == 0, done.stderr
    expected = Release("default", "--set=autoscaling.enabled=true").all
    for each in (expected, made := resources(done.stdout)):
        (deployment,) = (resource for resource in each if resource["kind"] == "Deployment")
        deployment["spec"]["template"]["spec"]["containers"][0]["resources"].pop("limits")
    assert made == expected


def test_every_value_has_a_path() -> None:
    assert len(PATHS) > 70
    assert {path.partition(".")[0] for path in PATHS} == VALUES.keys() - {"config"}


@pytest.mark.parametrize("section", ["upstream", "limits"])
def test_pairs_of_settings_are_checked_with_the_defaults_of_the_service(section: str) -> None:
    settings = getattr(Settings(), section)
    pairs = {
        "upstream": {
            "initial_backoff_seconds": "max_backoff_seconds",
            "max_event_bytes": "max_response_bytes",
        },
        "limits": {"min_deadline_seconds": "default_deadline_seconds"},
    }[section]
    for least, most in pairs.items():
        for name, value in ((least, getattr(settings, most)), (most, getattr(settings, least))):
            beyond = value + (1 if name == least else -value / 2)
            assert template(f"--set-json=config.{section}.{name}={value}").returncode == 0
            done = template(f"--set-json=config.{section}.{name}={type(value)(beyond)}")
            assert f"config.{section}.{most}: is below {least}; set it to at least" in done.stderr
            with pytest.raises(ValidationError):
                type(settings)(**{name: beyond})


SETTINGS = {row.path: row for row in describe()}
OF_THE_CHART = ("listen", "health_listen", "metrics_listen", "tls.", "upstream.api_key", "drain.")


@pytest.mark.parametrize("path", [path for path in SETTINGS if not path.startswith(OF_THE_CHART)])
def test_a_setting_without_a_value_is_not_set(path: str, tmp_path: Path) -> None:
    """Helm accepts it, and the service uses its default."""
    done = template(f"--set-json=config.{path}=null", "--set=tls.secret=x,tls.clientCa.secret=x")
    assert done.returncode == 0, done.stderr
    (tmp_path / "chatrpc.yaml").write_text(f"{{{path.replace('.', ': {')}: null{'}' * path.count('.')}}}")
    assert load(environ={"CHATRPC_CONFIG": str(tmp_path / "chatrpc.yaml")}) == Settings()


@pytest.mark.parametrize(
    "valid",
    [
        ["ports.grpc=50052"],
        ['config.models="a,b"'],
        ["enabled=true"],
        ["autoscaling.enabled=true", "resources.requests.cpu=null", "resources.limits.cpu=1"],
        [
            'grpcRoute={"enabled": true, "parentRefs": [{"name": "a"}], "backendTlsPolicy": {"enabled": false}}',
            *('tls.secret="x"', "networkPolicy.enabled=false"),
        ],
        ["config.upstream.initial_backoff_seconds=8"],
        ['config.limits={"min_deadline_seconds": 0, "default_deadline_seconds": 0.01}'],
        ["config.limits=null"],
    ],
    ids=str,
)
def test_valid_values_are_accepted(valid: list[str]) -> None:
    done = template(*(f"--set-json={value}" for value in valid))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("release", ["1chat", "2"])
def test_a_name_that_begins_with_a_digit_is_reported(release: str) -> None:
    done = template(name=release)
    assert f'fullnameOverride: "{release}-chatrpc" is no valid name of a Service' in done.stderr
    done = template("--set=fullnameOverride=chat", name=release)
    assert done.returncode == 0, done.stderr


def as_part(folder: Path, **dependency: str) -> subprocess.CompletedProcess[str]:
    """Render a chart that contains the chart as a dependency."""
    parent = {"apiVersion": "v2", "name": "all", "version": "1.0.0"}
    part = {"name": "chatrpc", "version": yaml.safe_load((CHART / "Chart.yaml").read_text())["version"], **dependency}
    shutil.copytree(CHART, folder / "charts/chatrpc")
    (folder / "Chart.yaml").write_text(yaml.safe_dump({**parent, "dependencies": [part]}))
    (folder / "values.yaml").write_text("chatrpc: {enabled: true, fixedUser: false}\n")
    return run(TOOLS / "bin/helm", "template", "r", folder)


def test_it_can_be_a_dependency_of_another_chart(tmp_path: Path) -> None:
    done = as_part(tmp_path, condition="chatrpc.enabled")
    assert done.returncode == 0, done.stderr
    release = Release("default", text=done.stdout)
    assert release.deployment["metadata"]["name"] == "r-chatrpc"
    assert "runAsUser" not in release.pod["securityContext"]


def test_an_invalid_alias_is_reported(tmp_path: Path) -> None:
    assert '"r-chatEu" is no valid name of a Service' in as_part(tmp_path, alias="chatEu").stderr


def test_large_numbers_stay_integers() -> None:
    """Helm reads numbers as floating point, and could write a large one as 3.3554432e+07."""
    assert Release("full").config["limits"]["max_message_bytes"] == 33554432


def notes_of(scenario: str, *arguments: str) -> str:
    done = run(
        TOOLS / "bin/helm", "install", "chatrpc", CHART, f"--namespace={NAMESPACE}", "--dry-run=client",
        f"--values={SCENARIOS[scenario]}", *arguments,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:\n")[2]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_notes_have_a_valid_call(scenario: str) -> None:
    notes = notes_of(scenario)
    release = Release(scenario)
    name = release.deployment["metadata"]["name"]
    assert f"dns:///{name}-headless.{NAMESPACE}.svc.cluster.local:{release.ports['grpc']}" in notes
    command = shlex.split(re.search(r"^ *grpcurl (?:.*\\\n)*.*$", notes, re.MULTILINE)[0])  # type: ignore[index]
    options = {
        option: command[command.index(option) + 1] for option in ("-d", "-import-path", "-proto") if option in command
    }
    if not release.config.get("reflection"):
        assert (ROOT / options["-import-path"] / options["-proto"]).exists()
    assert ("-plaintext" in command) == ("tls" not in release.config)
    assert ("-cert" in command) == ("client_ca_file" in release.config.get("tls", {}))
    assert json.loads(options["-d"]).keys() == {"model", "messages"}
    service, _, method = command[-1].partition("/")
    assert method in chat_service_pb2.DESCRIPTOR.services_by_name["ChatCompletionService"].methods_by_name
    assert service == "chatrpc.v1.ChatCompletionService"
    assert command[-2] == f"127.0.0.1:{release.ports['grpc']}"
    assert ("No key is sent" in notes) == ("api_key_file" not in release.config["upstream"] and scenario != "echo")


def test_the_notes_recognize_a_key_in_the_environment() -> None:
    assert "No key is sent" in notes_of("default", "--set=extraEnv[0].name=A")
    by_environment = '--set-json=extraEnv=[{"name": "CHATRPC_UPSTREAM__API_KEY", "value": "x"}]'
    assert "No key is sent" not in notes_of("default", by_environment)


def test_the_notes_name_a_model() -> None:
    assert '"model": "gpt-4o"' in notes_of("full"), "the first of config.models"
    assert '"model": "gpt-4o-mini"' in notes_of("default", "--set=config.models=null")
    assert '"model": "one"' in notes_of("default", '--set-json=config.models=" , one, two"')
