"""The wheels in a clean environment outside the checkout: commands, and each distribution without the other."""

import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chatrpc_client import Client
from support.process import ANY_PORTS, running

ROOT = Path(__file__).parents[2]
DIST = Path(os.environ["DIST"])
VERSION = (ROOT / "VERSION").read_text().strip()
pytestmark = pytest.mark.timeout(300)  # the first one waits for downloads


class Environment:
    """A virtual environment with the wheels, in a folder from which the checkout cannot be imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv", with_pip=True)
        locked = re.findall(
            r"^([\w.-]+==[^\s\\;]+)(?:.*?)\\?$", (ROOT / "requirements/image.txt").read_text(), re.MULTILINE
        )
        (folder / "constraints.txt").write_text("\n".join(locked))
        self.pip(
            "install", "--constraint", str(folder / "constraints.txt"), *map(self.wheel, ["protos", "server", "client"])
        )

    @staticmethod
    def wheel(part: str) -> str:
        path = str(DIST / f"chatrpc_{part}-{VERSION}-py3-none-any.whl")
        return f"{path}[echo]" if part == "server" else path

    def program(self, name: str) -> str:
        return str(self.folder / "venv/bin" / name)

    def run(self, name: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": "", **environ}
        return subprocess.run(
            [self.program(name), *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def pip(self, *arguments: str) -> None:
        done = self.run("python", "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments)
        assert done.returncode == 0, done.stderr

    @contextmanager
    def without(self, part: str) -> Iterator[None]:
        """Uninstall a distribution for the time of the context."""
        self.pip("uninstall", "--yes", f"chatrpc-{part}")
        try:
            yield
        finally:
            self.pip("install", "--no-deps", self.wheel(part))

    @contextmanager
    def service(self) -> Iterator[str]:
        """Run `serve` against `echo`; yield the address of the service."""
        command = [self.program("chatrpc-server")]
        with running("echo", "--listen=127.0.0.1:0", command=command, PYTHONPATH="") as echo:
            base_url = echo.line("http://").split()[-1]
            with running("serve", *ANY_PORTS, command=command, PYTHONPATH="", OPENAI_BASE_URL=base_url) as serve:
                yield serve.log("serving")["listen"]
                serve.signal()
                assert serve.wait() == 0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("installed"))


@pytest.fixture(autouse=True)
def _outside(installed: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(installed.folder)


def test_versions_and_origin(installed: Environment) -> None:
    installed.pip("check")
    assert installed.run("chatrpc-server", "--version").stdout == f"chatrpc-server {VERSION}\n"
    assert installed.run("chatrpc", "--version").stdout == f"chatrpc {VERSION}\n"
    modules = ["chatrpc.v1.chat_error_pb2", "chatrpc_client", "chatrpc_echo", "chatrpc_server"]
    code = "import importlib, sys; [print(importlib.import_module(name).__file__) for name in sys.argv[1:]]"
    files = installed.run("python", "-c", code, *modules).stdout.split()
    assert len(files) == len(modules)
    assert all(Path(file).is_relative_to(installed.folder / "venv") for file in files)


def test_commands(installed: Environment) -> None:
    with installed.service() as target:
        done = installed.run("chatrpc", "--model=echo", "Hello, wheels!", CHATRPC_TARGET=target)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Hello, wheels!" in done.stdout


def test_server_without_the_client(installed: Environment) -> None:
    with installed.without("client"), installed.service() as target:
        health = installed.run("chatrpc-server", "healthcheck", f"--listen={target}")
        assert (health.returncode, health.stdout) == (0, "SERVING\n")
        with Client(target, timeout=20) as client:
            response = client.complete(model="echo", messages=[{"role": "user", "content": "Still here?"}])
    assert response.choices[0].message.content == "You said: Still here?"


def test_client_without_the_server(installed: Environment) -> None:
    ours = [sys.executable, "-m", "chatrpc_server"]
    with (
        installed.without("server"),
        running("echo", "--listen=127.0.0.1:0", command=ours) as echo,
        running("serve", *ANY_PORTS, command=ours, OPENAI_BASE_URL=echo.line("http://").split()[-1]) as serve,
    ):
        target = serve.log("serving")["listen"]
        done = installed.run("chatrpc", "--model=echo", "Still here?", CHATRPC_TARGET=target)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Still here?" in done.stdout


def test_base_install_has_no_embedded_upstream(installed: Environment) -> None:
    installed.pip("uninstall", "--yes", "aiohttp")
    try:
        done = installed.run("chatrpc-server", "echo")
    finally:
        installed.pip("install", "--constraint", "constraints.txt", "aiohttp")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'chatrpc-server[echo]'" in done.stderr
