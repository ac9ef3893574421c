"""Containers of the image, run by podman."""

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

IMAGE = "localhost/chatrpc:test"
SECONDS = 60.0
# runc and cgroupfs, because systemd may be absent. ulimits, because podman's own may exceed this machine's.
_PODMAN = ["podman", "--runtime=runc", "--cgroup-manager=cgroupfs", "--log-level=fatal"]
_LIMITS = ["--ulimit=nofile=4096:4096", "--ulimit=nproc=1024:1024"]
# Like the chart's security context.
RESTRICTED = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges"]


def podman(*arguments: str, **options: Any) -> str:
    """Run podman and return its output. Raises CalledProcessError with its errors."""
    done = subprocess.run([*_PODMAN, *arguments], capture_output=True, text=True, timeout=SECONDS, **options)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, arguments, done.stdout, done.stderr)
    return done.stdout


def run(*arguments: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the image with these arguments until it exits."""
    command = [*_PODMAN, "run", "--rm", *_LIMITS, *RESTRICTED, "--network=none", *options, IMAGE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


class Container:
    """A running container. `host` is its IP address on a bridge of this machine."""

    def __init__(self, name: str, host: str) -> None:
        self.name, self.host = name, host

    def inspect(self) -> dict[str, Any]:
        (found,) = json.loads(podman("inspect", self.name))
        return dict(found)

    @property
    def logs(self) -> str:
        """The container's whole output."""
        done = subprocess.run(
            [*_PODMAN, "logs", self.name], capture_output=True, text=True, timeout=SECONDS, check=True
        )
        return done.stdout + done.stderr

    def log(self, event: str) -> dict[str, Any]:
        """Return the log line of this event; wait for it."""

        def found() -> dict[str, Any] | None:
            lines = [json.loads(line) for line in self.logs.splitlines() if line.startswith("{")]
            return next((line for line in lines if line["event"] == event), None)

        return self.eventually(found)

    def eventually(self, question: Callable[[], Any]) -> Any:
        """Poll and return the first true value. Raises AssertionError with the log after `SECONDS`."""
        end = monotonic() + SECONDS
        while not (answer := question()):
            assert monotonic() < end, self.logs
            sleep(0.1)
        return answer

    def execute(self, *command: str) -> str:
        return podman("exec", self.name, *command).strip()

    def kill(self, signal: str) -> None:
        podman("kill", f"--signal={signal}", self.name)

    def wait(self) -> int:
        """Wait for the exit; return its code."""
        return int(podman("wait", self.name))


@contextmanager
def container(*arguments: str, options: Sequence[str] = ()) -> Iterator[Container]:
    """Run the image with these arguments in the background; remove the container at the end."""
    name = f"chatrpc-test-{uuid.uuid4().hex[:8]}"
    podman("run", "--detach", f"--name={name}", *_LIMITS, *RESTRICTED, *options, IMAGE, *arguments)
    try:
        yield Container(name, podman("inspect", "--format={{.NetworkSettings.IPAddress}}", name).strip())
    finally:
        podman("rm", "--force", "--time=0", name)


@contextmanager
def service(*options: str, arguments: Sequence[str] = ()) -> Iterator[Container]:
    """Run the service as the image starts it, with echo in a container that shares the network."""
    with container("echo", "--listen=127.0.0.1:8080", options=["--no-healthcheck"]) as echo:
        echo.eventually(lambda: "echo serves" in echo.logs)
        environment = ["--env=OPENAI_BASE_URL=http://127.0.0.1:8080/v1", "--env=CHATRPC_ALLOW_INSECURE=true"]
        with container(*arguments, options=[f"--network=container:{echo.name}", *environment, *options]) as serving:
            serving.host = echo.host
            serving.log("serving")
            yield serving
