"""A Kubernetes for tests: `with Cluster(folder) as cluster: cluster.kubectl("get", "pods")`.

As a program it runs until SIGINT or SIGTERM, and prints the shell command that selects it.
"""

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests")]  # for the use as a program

from deploy.kubernetes import control_plane, node  # noqa: E402
from deploy.kubernetes.identities import Identities  # noqa: E402
from deploy.kubernetes.image import archive  # noqa: E402
from deploy.kubernetes.machine import Machine, free_ports, obstacle  # noqa: E402
from deploy.kubernetes.place import CLUSTER_DOMAIN, Place, Program  # noqa: E402

TOOLS = ROOT / ".tools" / "kubernetes"
PATH = f"{TOOLS}:{ROOT / '.tools' / 'deploy' / 'bin'}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
SECONDS = 120.0


def missing() -> str:
    """Return the reason why no cluster is possible, or an empty text."""
    if not (TOOLS / "built").exists():
        return "Kubernetes: not built; run tests/deploy/kubernetes/install"
    return "" if shutil.which("kubectl", path=PATH) else "kubectl: not installed; run tests/deploy/manifests/install"


def missing_node() -> str:
    """Return the reason why clusters have no node, or an empty text."""
    return obstacle(PATH)


class Cluster:
    """A cluster. With a node, pods run, and this process reaches pods and services at their addresses.

    Without a node, the API server and the controllers handle objects, but pods stay pending. Only the folder remains
    after the context.
    """

    def __init__(self, folder: Path, with_node: bool | None = None, *, with_policies: bool = False) -> None:
        """`folder` need not exist. If `with_node` is None, the cluster has a node if one is possible.

        With `with_policies`, NetworkPolicies are enforced, even against this process, and the address `node.METADATA`
        exists, which the policies must block.
        """
        self.folder = folder.resolve()
        self.has_node = not missing_node() if with_node is None else with_node
        self.has_policies = with_policies
        self.kubeconfig = self.folder / "identities" / "admin.kubeconfig"
        self.environment = {"PATH": PATH, "HOME": str(self.folder), "KUBECONFIG": str(self.kubeconfig)}
        """Environment for other clients of the cluster, such as helm."""

    def __enter__(self) -> "Cluster":
        assert not missing(), missing()
        with ExitStack() as stack:
            self._machine = Machine(self.folder, self.environment, self.has_node)
            stack.callback(self._machine.stop)
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def host(self) -> str:
        """Address at which pods reach servers of this machine."""
        return self._machine.host

    @property
    def address(self) -> str:
        """Address of the node, or of the control plane without a node."""
        return self._machine.address

    def kubectl(self, *arguments: str, input: str | None = None, timeout_seconds: float = SECONDS) -> str:  # noqa: A002
        """Run kubectl and return its output. Raises CalledProcessError with its errors as a note."""
        return self._run("kubectl", *arguments, input=input, timeout=timeout_seconds)

    def get(self, *arguments: str) -> Any:
        """Return the parsed output of `kubectl get`."""
        return json.loads(self.kubectl("get", "--output=json", *arguments))

    def import_image(self, file: Path) -> None:
        """Import an archive in Docker's or OCI's format, such as from `podman save`, for pods that do not pull."""
        self._run("ctr", f"--address={self.folder / node.SOCKET}", "--namespace=k8s.io", "images", "import", str(file))

    def log(self, name: str) -> str:
        """Return the whole output of a program: kube-apiserver, kubelet, containerd, ..."""
        return self._machine.log(name)

    def until(self, holds: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
        """Poll and return the first true value. Raises TimeoutError; RuntimeError at once if a program has exited."""
        deadline = time.monotonic() + seconds
        while not (answer := holds()):
            for name in self._machine.ended():
                raise RuntimeError(f"{name} exited; its last lines:\n{self._last_lines(name)}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"timeout after {seconds:.0f} s: {what}")
            time.sleep(0.1)
        return answer

    def _start(self) -> None:
        address, number = self._machine.address, self._machine.number
        port, manager_port, scheduler_port, *etcd_ports = free_ports(5)
        names = [address, "localhost", node.NAME, "kubernetes.default.svc", f"kubernetes.default.svc.{CLUSTER_DOMAIN}"]
        if self.has_node:
            names.append(f"10.{number}.1.1")  # address of the service `kubernetes`, which is the first
        who = Identities(self.kubeconfig.parent, f"https://{address}:{port}", names)
        place = Place(TOOLS, self.folder, who, address, number)

        self._run_until_ready(
            control_plane.etcd(place, *etcd_ports), control_plane.api_server(place, port, *etcd_ports)
        )
        others = [control_plane.controller_manager(place, manager_port), control_plane.scheduler(place, scheduler_port)]
        if self.has_node:
            self._run_until_ready(node.containerd(place))
            self.until((self.folder / node.SOCKET).exists, "containerd listens")
            self.import_image(archive(TOOLS / "pause", node.PAUSE, self.folder / "pause.tar"))
            others += [node.kubelet(place), node.proxy(place), node.dns(place)]
        self._run_until_ready(*others)
        self.until(lambda: self.get("serviceaccounts")["items"], "a service account for pods exists")
        if self.has_node:
            self.until(self._accepts_pods, "the node accepts pods")
            if self.has_policies:
                self._run_until_ready(node.policies(place), node.metadata(place))

    def _run_until_ready(self, *programs: Program) -> None:
        for program in programs:
            self._machine.run(program.name, *program.command)
        for program in programs:
            try:
                self.until(partial(self._answers, program.ready), f"{program.name} is ready")
            except TimeoutError as error:
                error.add_note(f"Its last lines:\n{self._last_lines(program.name)}")
                raise

    def _answers(self, url: str) -> bool:
        if not url:
            return True
        context = ssl.create_default_context(cafile=self.kubeconfig.with_name("ca.crt"))
        try:
            with build_opener(ProxyHandler({}), HTTPSHandler(context=context)).open(url, timeout=5):
                return True
        except OSError:  # includes HTTP error statuses
            return False

    def _accepts_pods(self) -> bool:
        for it in self.get("nodes")["items"]:
            conditions = {condition["type"]: condition["status"] for condition in it["status"]["conditions"]}
            return conditions.get("Ready") == "True" and not it["spec"].get("taints")
        return False  # not registered yet

    def _last_lines(self, name: str) -> str:
        return "\n".join(self.log(name).splitlines()[-20:])

    def _run(self, name: str, *arguments: str, timeout: float = SECONDS, input: str | None = None) -> str:  # noqa: A002
        program = shutil.which(name, path=PATH)
        assert program, f"{name} is not installed"
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            check=False,
            env=self.environment,
            input=input,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            error = subprocess.CalledProcessError(done.returncode, [name, *arguments], done.stdout, done.stderr)
            error.add_note(done.stderr)
            raise error
        return done.stdout


def _stay() -> None:
    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    with tempfile.TemporaryDirectory(prefix="kubernetes-") as folder, Cluster(Path(folder)) as cluster:
        print(f"export KUBECONFIG={cluster.kubeconfig}  # {missing_node() or f'a node, {cluster.address}'}", flush=True)
        signal.sigwait(stop)


if __name__ == "__main__":
    _stay()
