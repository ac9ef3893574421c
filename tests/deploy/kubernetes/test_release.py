"""The chart on a node: probes, test hook, calls, scrapes."""

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from chatrpc_client import Client
from deploy.kubernetes.cluster import PATH, ROOT
from deploy.kubernetes.release import Release
from deploy.prometheus.live import MISSING, prometheus, tool
from support.callers import calling, unary
from support.process import running

pytestmark = pytest.mark.timeout(400)

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def installed(release: Release) -> Release:
    """The default release, with two pods and the embedded upstream."""
    release.install(echo={"enabled": True})
    return release


def test_its_pods_are_ready_and_its_hook_finds_them_healthy(installed: Release) -> None:
    pods = installed.pods()
    assert len(pods) == 2
    for pod in pods:
        assert {"type": "Ready", "status": "True"}.items() <= _condition(pod, "Ready").items()
        assert {each["restartCount"] for each in pod["status"]["containerStatuses"]} == {0}
    assert "Phase:          Succeeded" in installed.helm("test", "chatrpc")
    checked = installed.kubectl("exec", "deployment/chatrpc", "--", "chatrpc-server", "check-config")
    assert '"listen": "0.0.0.0:50051"' in checked


def _condition(pod: dict, name: str) -> dict:  # type: ignore[type-arg]
    return next(each for each in pod["status"]["conditions"] if each["type"] == name)


def test_the_call_of_the_notes(release: Release) -> None:
    """Run the call exactly as printed, in the root of the repository."""
    if not shutil.which("grpcurl", path=PATH):
        pytest.skip("grpcurl: not built without Go; install Go, then run tests/deploy/manifests/install")
    notes = release.install(echo={"enabled": True}).partition("NOTES:\n")[2]
    (forward,) = re.findall(r"^ *(kubectl .* port-forward .*) &$", notes, re.MULTILINE)
    (call,) = re.findall(r"^ *(grpcurl (?:.*\\\n)*.*)$", notes, re.MULTILINE)
    with running("-c", f"exec {forward}", command=["bash"], **release.cluster.environment) as process:
        process.line("Forwarding from 127.0.0.1:50051")
        command = ["bash", "-c", call]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, cwd=ROOT, env={"PATH": PATH}, check=True
        )
    assert "".join(re.findall(r'"content": "(.*)"', done.stdout)) == "You said: Hello!"


async def test_it_responds_at_both_names(installed: Release) -> None:
    for service in ("chatrpc", "chatrpc-headless"):
        async with calling(installed.target(service)) as stub:
            assert (await unary(stub)).messages[0].choices[0].message.content == "You said: Hello!"
    virtual = installed.get("service", "chatrpc")["spec"]["clusterIP"]
    with Client(f"{virtual}:50051") as client, client.stream(model="echo", messages=HELLO) as stream:
        assert await asyncio.to_thread("".join, stream.text_stream()) == "You said: Hello!"


def test_prometheus_scrapes_its_pods(installed: Release, tmp_path: Path) -> None:
    """The cluster has PodMonitors, so the chart creates one. The test reads it, because there is no operator."""
    if not tool("prometheus"):
        pytest.skip(MISSING)
    (monitor,) = installed.get("podmonitors")["items"]
    selector = ",".join(f"{key}={value}" for key, value in monitor["spec"]["selector"]["matchLabels"].items())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    targets = []
    for pod in installed.get("pods", f"--selector={selector}")["items"]:
        ports = [port for container in pod["spec"]["containers"] for port in container.get("ports", [])]
        (port,) = (port["containerPort"] for port in ports if port["name"] == endpoint["port"])
        targets.append(f"{pod['status']['podIP']}:{port}")
    assert len(targets) == 2
    with prometheus(tmp_path, *targets) as started:

        def up() -> set[str]:
            return {each["metric"]["instance"] for each in started.query("up == 1")}

        installed.cluster.until(lambda: up() == set(targets), "Prometheus has scraped both pods")
        assert started.value("sum(chatrpc_draining)") == 0
