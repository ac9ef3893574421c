"""deploy/compose, run by podman-compose, except Grafana, whose image cannot be built from Debian's packages."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
import yaml

from chatrpc_client import Client
from deploy.image.containers import IMAGE, podman

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[3]
FILE = ROOT / "deploy/compose/compose.yaml"
SERVICES = yaml.safe_load(FILE.read_text())["services"]
PROMETHEUS = f"localhost/{SERVICES['prometheus']['image']}"
PROGRAM = shutil.which("prometheus") or ROOT / ".tools/bin/prometheus"


def compose(*arguments: str) -> None:
    options = ["--podman-args=--runtime=runc", "--podman-args=--cgroup-manager=cgroupfs", f"--file={FILE}"]
    limits = "--podman-run-args=--ulimit=nofile=4096:4096 --ulimit=nproc=1024:1024"
    command = [os.environ["PODMAN_COMPOSE"], *options, limits, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def buildah(*arguments: str) -> str:
    return subprocess.run(
        ["buildah", *arguments], capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    if not Path(PROGRAM).exists():
        pytest.skip("prometheus: not installed, and its image is built from it; run `make tools`")
    # Debian's program at the path of the official image.
    container = buildah("from", "--pull-never", "localhost/debian:trixie-slim")
    buildah("add", "--quiet", container, str(PROGRAM), "/bin/prometheus")
    buildah("run", "--isolation=chroot", container, "install", "--directory", "--owner=65534", "/prometheus")
    buildah("config", "--user=65534", '--entrypoint=["/bin/prometheus"]', container)
    buildah("commit", "--quiet", "--rm", container, PROMETHEUS)
    podman("tag", IMAGE, f"localhost/{SERVICES['chatrpc']['image']}")
    try:
        compose("up", "--detach", "--no-build", "chatrpc", "prometheus")
        yield
    finally:
        compose("down", "--volumes", "--timeout=1")


def query_result(query: str) -> list[Any]:
    answer = httpx.get("http://127.0.0.1:9090/api/v1/query", params={"query": query}, trust_env=False)
    return list(answer.json()["data"]["result"])


def eventually(query: str) -> list[Any]:
    """Return the first result of the query that is not empty."""
    end = monotonic() + 60
    while True:
        try:
            if found := query_result(query):
                return found
        except httpx.TransportError:
            pass
        assert monotonic() < end, f"no result: {query}"
        sleep(0.5)


def test_a_call_is_answered_and_counted(running: None) -> None:
    eventually('up{job="chatrpc"} == 1')
    with Client("127.0.0.1:50051") as client:
        answer = client.complete(model="echo", messages=[{"role": "user", "content": "Hello!"}])
    assert answer.choices[0].message.content == "You said: Hello!"
    (counted,) = eventually('grpc_server_handled_total{grpc_method="CreateChatCompletion", grpc_code="OK"} > 0')
    assert counted["value"][1] == "1"


def test_the_rules_are_loaded(running: None) -> None:
    eventually('up{job="chatrpc"} == 1')
    groups = httpx.get("http://127.0.0.1:9090/api/v1/rules", trust_env=False).json()["data"]["groups"]
    assert {rule["name"] for group in groups for rule in group["rules"]} > {"ChatrpcDown"}


def test_grafanas_files_exist_and_agree() -> None:
    """Grafana itself does not run, because its image is not available here."""
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    for source in mounts:
        assert (FILE.parent / source).is_file()
    (source,) = yaml.safe_load((FILE.parent / "grafana/datasources.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((FILE.parent / "grafana/dashboards.yaml").read_text())["providers"]
    dashboard = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert dashboard.startswith(provider["options"]["path"])
    assert dashboard in mounts.values()
