"""The image: its contents, and its run as on a platform: not root, no writable folder, little memory."""

import asyncio
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from chatrpc_client import AsyncClient, Client
from deploy.image.containers import IMAGE, Container, podman, run, service

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[3]
HELLO = [{"role": "user", "content": "Hello!"}]
PICTURE = [{"role": "user", "content": [{"type": "text", "text": "x" * (5 << 20)}]}]
MEBIBYTES = 1 << 20


@pytest.fixture(scope="module")
def serving() -> Iterator[Container]:
    with service() as container:
        yield container


def target(container: Container) -> str:
    return f"{container.host}:50051"


def test_its_metadata() -> None:
    (image,) = json.loads(podman("inspect", "--type=image", IMAGE))
    config = image["Config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["chatrpc-server"], "the program itself is process 1, without a shell"
    assert config["StopSignal"] == "SIGTERM"
    assert image["Healthcheck"]["Test"] == ["CMD", "chatrpc-server", "healthcheck"]
    assert set(config["ExposedPorts"]) == {"50051/tcp", "9464/tcp"}
    named = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    version = run("--version").stdout.split()[-1]
    assert (named["title"], named["version"], named["licenses"]) == ("chatrpc", version, "Apache-2.0")
    assert len(named["revision"]) == 40
    assert image["Size"] < 240 * MEBIBYTES


LOOK = """
import importlib.util, os, shutil, sys
commands = ("pip", "pip3", "gcc", "cc", "c++", "clang", "ld", "make", "git", "curl", "wget")
print(*filter(shutil.which, commands), *filter(importlib.util.find_spec, ("pip", "ensurepip", "setuptools")))
print(os.getuid(), os.getgid(), os.getgroups())
try:
    open(f"{sys.prefix}/here", "w")
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("python", ["/opt/chatrpc/bin/python", "/usr/bin/python3"])
def test_it_has_neither_pip_nor_compiler_nor_a_writable_folder(python: str) -> None:
    seen = run("-c", LOOK, options=[f"--entrypoint={python}"])
    assert seen.stdout.splitlines() == ["", "65532 65532 [65532]", "Read-only file system"], seen.stderr


def test_it_requires_allow_insecure_without_tls() -> None:
    ended = run()
    assert ended.returncode == 2
    assert "allow_insecure" in ended.stderr


def test_it_answers(serving: Container) -> None:
    with Client(target(serving)) as client:
        assert client.complete(model="echo", messages=HELLO).choices[0].message.content == "You said: Hello!"
        with client.stream(model="echo:pieces=9", messages=HELLO) as stream:
            assert "".join(stream.text_stream()) == "1 2 3 4 5 6 7 8 9"
    with urlopen(f"http://{serving.host}:9464/metrics", timeout=5) as response:
        metrics = response.read().decode()
    assert 'grpc_server_handled_total{grpc_code="OK",grpc_method="CreateChatCompletion"' in metrics


def test_it_is_healthy(serving: Container) -> None:
    assert serving.execute("chatrpc-server", "healthcheck", "--service=readiness") == "SERVING"
    podman("healthcheck", "run", serving.name)  # by the image's own command; raises if it fails
    assert serving.execute("cat", "/proc/1/cmdline").split("\0")[1:3] == ["/opt/chatrpc/bin/chatrpc-server", "serve"]


def test_it_runs_as_any_user() -> None:
    """OpenShift chooses a number of the namespace and the group root."""
    with service("--user=1000660000:0") as serving, Client(target(serving)) as client:
        assert serving.execute("id", "-u") == "1000660000"
        assert client.complete(model="echo", messages=HELLO).choices[0].message.content == "You said: Hello!"


def test_it_can_send_traces() -> None:
    """The image has the extra, because many clusters set the variable for all pods, and without it the start fails."""
    with service("--env=OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318") as serving:
        assert serving.log("serving")["traces"] == "http://127.0.0.1:4318"


async def test_on_sigterm_it_drains() -> None:
    with service("--env=CHATRPC_DRAIN__DELAY_SECONDS=0") as serving:
        async with AsyncClient(target(serving)) as client:
            async with client.stream(model="echo:pieces=30,pace=0.1", messages=HELLO) as stream:
                await anext(stream)
                serving.kill("TERM")
                await asyncio.to_thread(serving.log, "draining")
                async for _ in stream:
                    pass
            assert stream.snapshot.text.endswith(" 30")
        assert await asyncio.to_thread(serving.wait) == 0
        serving.log("stopped")


async def test_its_memory_suffices_for_the_limit_of_calls() -> None:
    """`resources.limits.memory` of the chart, with limits.max_in_flight calls, some of them large."""
    with service("--memory=768m", "--memory-swap=768m") as serving:

        def memory(unified: str, former: str) -> int:
            files = (f"/sys/fs/cgroup/{unified}", f"/sys/fs/cgroup/memory/{former}")  # of cgroup 2, and 1
            return int(serving.execute("sh", "-c", f"cat {' || cat '.join(files)}"))

        assert memory("memory.max", "memory.limit_in_bytes") == 768 * MEBIBYTES
        async with AsyncClient(target(serving)) as client:
            streams = [client.stream(model="echo:pieces=3,gap=5", messages=HELLO) for _ in range(950)]
            await asyncio.gather(*map(anext, streams))
            large = [client.complete(model="echo:pieces=3", messages=PICTURE) for _ in range(12)]
            assert len(await asyncio.gather(*large)) == 12
            for stream in streams:
                _ = [chunk async for chunk in stream]
            assert {stream.snapshot.text for stream in streams} == {"1 2 3"}
        state = serving.inspect()["State"]
        assert (state["OOMKilled"], state["Running"]) == (False, True)
        most = memory("memory.peak", "memory.max_usage_in_bytes") / MEBIBYTES
        print(f"at most {most:.0f} MiB")
        assert most < 512


def test_workers_need_a_place_for_temporary_files() -> None:
    with service("--tmpfs=/tmp", "--env=CHATRPC_WORKERS=2") as serving, Client(target(serving)) as client:
        assert client.complete(model="echo", messages=HELLO).choices[0].message.content == "You said: Hello!"
    ended = run(options=["--env=CHATRPC_WORKERS=2", "--env=CHATRPC_ALLOW_INSECURE=true"])
    assert ended.returncode == 1
    assert "TMPDIR" in ended.stderr


def test_no_secret_is_in_a_layer(tmp_path: Path) -> None:
    """Files of the working copy and variables of the build stay out of the image."""
    canary = "canary-of-the-image-tests"
    context = tmp_path / "context"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, context / name)
    for name in (".env", "deploy/tls.key", "service/.env", "service/chatrpc_server/key.txt", ".git/config"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text(canary)
    environment = os.environ | {"OPENAI_API_KEY": canary}
    build = ROOT / "tests/deploy/image/build"
    subprocess.run([build, context], check=True, capture_output=True, env=environment, timeout=280)
    archive = tmp_path / "image.tar"
    podman("save", "--format=docker-archive", f"--output={archive}", IMAGE)
    names = set()
    with tarfile.open(archive) as image:
        for member in image:
            if not member.isfile():
                continue
            content = image.extractfile(member)
            assert content
            data = content.read()
            assert canary.encode() not in data, member.name
            if member.name.endswith(".tar"):
                with tarfile.open(fileobj=io.BytesIO(data)) as layer:
                    names |= {file.name for file in layer if file.isfile()}
    ours = {name for name in names if "/chatrpc_server/" in name}
    assert any(name.endswith("chatrpc_server/server.py") for name in ours)
    assert not {name for name in ours if not name.endswith((".py", ".pyc"))}
    assert not {name for name in names if name.endswith((".key", ".env")) or name.startswith("src/")}
