"""Values that cannot be: each is told by its name before anything is installed. And what the notes tell."""

import json
import re
import shlex

import pytest
from deploy.charts import CHART, NAMESPACE, ROOT, SCENARIOS, TOOLS, Release, run, template

from chatrpc.v1 import chat_service_pb2

REFUSED = {
    "no such value": (["replica=2"], "additional properties 'replica' not allowed"),
    "no such setting": (["config.upstream.base_ur=x"], "at '/config/upstream': additional properties 'base_ur'"),
    "out of bounds": (["config.workers=0"], "at '/config/workers': minimum: got 0, want 1"),
    "no such choice": (["config.log.level=loud"], "at '/config/log/level': value must be one of 'debug', 'info'"),
    "of another type": (["config.reflection=maybe"], "at '/config/reflection': got string, want boolean"),
    "not for this place": (["config.listen=0.0.0.0:1"], "at '/config': additional properties 'listen' not allowed"),
    "a key in plain sight": (["config.upstream.api_key=sk-1"], "additional properties 'api_key' not allowed"),
    "drain without its seconds": (["config.drain=null"], "at '/config': missing property 'drain'"),
    "values of an older chart": (["config=null"], "missing property 'config'"),
    "a port that is none": (["ports.grpc=70000"], "at '/ports/grpc': maximum: got 70,000, want 65,535"),
    "one port twice": (["ports.metrics=50051"], "ports: must differ"),
    "callers' authority without TLS": (
        ["tls.clientCa.secret=ca"],
        "tls.clientCa.secret is of no use without tls.secret",
    ),
    "a certificate for nowhere": (["tls.certificate.enabled=true"], "tls.secret is needed with tls.certificate"),
    "a certificate by nobody": (
        ["tls.certificate.enabled=true", "tls.secret=x"],
        "tls.certificate.issuerRef is needed, such as {kind: ClusterIssuer, name: internal}",
    ),
    "insecure, and not meant": (
        ["config.allow_insecure=false"],
        "config.allow_insecure: false needs tls.clientCa.secret",
    ),
    "no Prometheus to ask": (
        ["autoscaling.enabled=true", "autoscaling.signal=keda"],
        "autoscaling.prometheus is needed with the signal keda",
    ),
    "fewest above most": (
        ["autoscaling.enabled=true", "autoscaling.minReplicas=9", "autoscaling.maxReplicas=3"],
        "autoscaling.minReplicas is above autoscaling.maxReplicas",
    ),
    "a route from nowhere": (["grpcRoute.enabled=true"], "grpcRoute.parentRefs is needed"),
    "a digest that is none": (["image.digest=latest"], "at '/image/digest'"),
}


@pytest.mark.parametrize(("values", "complaint"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_told(values: list[str], complaint: str) -> None:
    done = template(*(f"--set={value}" for value in values))
    assert done.returncode != 0
    assert complaint in done.stderr


def test_numbers_stay_whole() -> None:
    """Helm reads them as floating point, and would write a large one as 3.3554432e+07."""
    assert Release("full").config["limits"]["max_message_bytes"] == 33554432


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_notes_tell_a_call_that_can_be_made(scenario: str) -> None:
    done = run(
        TOOLS / "bin/helm", "install", "chatrpc", CHART, f"--namespace={NAMESPACE}", "--dry-run=client",
        f"--values={SCENARIOS[scenario]}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:\n")[2]
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
