"""The environment in which a cluster's programs run, made by the script `machine` in this folder."""

import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

SECONDS = 60.0
_SCRIPT = Path(__file__).with_name("machine")
_NAMESPACES = ["--mount", "--net", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--mount-proc"]


def obstacle(path: str) -> str:
    """Return the reason why no machine for a node is possible, or an empty text. `path` is the search path."""
    if os.geteuid():
        return "node: needs root; run as root"
    if missing := [
        name
        for name in ("runc", "nft", "ip", "iptables", "ipset", "unshare", "nsenter")
        if not shutil.which(name, path=path)
    ]:
        return f"node: {', '.join(missing)} not installed; run tests/deploy/kubernetes/install"
    command = ["unshare", *_NAMESPACES, "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    return f"node: namespaces are not available: {done.stderr.strip()}" if done.returncode else ""


def free_ports(count: int) -> list[int]:
    """Return free ports of 127.0.0.1, because these servers do not report theirs. In a new machine all are free."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Machine:
    """A machine whose programs listen at `address` and reach this process at `host`. Number 0 is this machine."""

    def __init__(self, folder: Path, environment: Mapping[str, str], with_node: bool) -> None:
        self._log = folder / "log"
        self._log.mkdir(parents=True)
        with (self._log / "machine.log").open("w") as errors:
            self._process = subprocess.Popen(
                [_SCRIPT, folder, *(["node"] if with_node else [])],
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # so that a terminal's SIGINT reaches only this process
            )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        number = self._stdout.readline().strip()
        if not number:
            self.stop()
            raise RuntimeError(f"the machine did not start: {self.log('machine')}")
        self.number = int(number)
        self.host = f"10.{number}.2.1" if with_node else "127.0.0.1"
        self.address = f"10.{number}.2.2" if with_node else "127.0.0.1"

    def run(self, name: str, *command: str) -> None:
        """Start a program in the background."""
        self._stdin.write(f"{shlex.join(['run', name, *command])}\n")
        self._stdin.flush()

    def log(self, name: str) -> str:
        """Return the whole output of a program."""
        return (self._log / f"{name}.log").read_text(errors="replace")

    def ended(self) -> list[str]:
        """Return the programs that have exited."""
        return [path.stem for path in self._log.glob("*.ended")]

    def stop(self) -> None:
        """Kill all programs at once, because a clean shutdown is not worth the wait."""
        self._stdin.close()
        self._stdout.close()
        self._process.wait(SECONDS)
