"""Changes of a release: rollouts and rollbacks under load, new settings, keys and certificates."""

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography import x509

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from deploy.kubernetes.cluster import Cluster
from deploy.kubernetes.release import Release
from deploy.manifests.charts import needs
from support import request
from support.callers import SERVICE_CONFIG, calling, load, unary, until

pytestmark = pytest.mark.timeout(400)

GRPC_LOOKUP_SECONDS = 30
"""gRPC's minimum between look-ups: a caller that resolved the name just before a rollout waits that long."""
ECHO = {"echo": {"enabled": True}}


def names(release: Release) -> set[str]:
    return {pod["metadata"]["name"] for pod in release.pods()}


async def changed(release: Release, **values: Any) -> None:
    await asyncio.to_thread(release.install, **values)


async def gone(release: Release, pods: set[str]) -> None:
    """Wait until the pods have stopped, not only until they are terminating."""

    def ended() -> bool:
        found = release.get("pods", "--selector=app.kubernetes.io/name=chatrpc")["items"]
        return not pods & {pod["metadata"]["name"] for pod in found}

    await release.until(ended, f"{pods} have stopped")


RETRYING = {"methodConfig": SERVICE_CONFIG["methodConfig"]}


@pytest.mark.parametrize(("service", "config"), [("chatrpc-headless", SERVICE_CONFIG), ("chatrpc", RETRYING)])
async def test_a_rollout_and_its_rollback_lose_no_call(release: Release, service: str, config: dict[str, Any]) -> None:
    """Callers of the headless name balance themselves; callers of the other name have one connection to one pod.

    The latter must not watch health, because they have no other pod while theirs drains.
    """
    await changed(release, **ECHO)
    first = names(release)
    async with calling(release.target(service), config, GRPC_LOOKUP_SECONDS) as stub, load(stub) as outcomes:
        await until(lambda: outcomes.total() > 50)
        await changed(release, **ECHO, config={"limits": {"max_in_flight": 500}})
        second = names(release)
        await gone(release, first)
        await asyncio.to_thread(release.helm, "rollback", "chatrpc", "1", "--wait", "--timeout=240s")
        await gone(release, second)
        before = outcomes.total()
        await until(lambda: outcomes.total() > before + 50)
    assert not first & second
    assert outcomes.keys() == {"whole"}, outcomes
    assert outcomes.total() > 300


async def test_an_autoscaler_starts_with_the_present_number_of_pods(release: Release) -> None:
    await changed(release, **ECHO, replicas=3)
    first = names(release)
    scaling = {"enabled": True, "minReplicas": 3}
    await changed(release, **ECHO, autoscaling=scaling)
    assert names(release) == first
    await scaled(release, 4)
    first = names(release)
    await changed(release, **ECHO, autoscaling=scaling, config={"log": {"level": "debug"}})
    assert (names(release), number(release)) == (first, 4)


@pytest.mark.parametrize("program", ["helm", "helm3"])
async def test_upgrade_and_rollback_leave_the_number_to_the_autoscaler(release: Release, program: str) -> None:
    """The autoscaler has no CPU metrics here, so kubectl scales instead."""
    needs(program)
    release.program = program
    values = {**ECHO, "autoscaling": {"enabled": True, "minReplicas": 2}}
    await changed(release, **values)
    await release.until(lambda: len(names(release)) == 2, "the minimum of pods")
    await scaled(release, 3)
    pods = names(release)
    await changed(release, **values, config={"log": {"level": "debug"}})
    assert (names(release), number(release)) == (pods, 3)
    await asyncio.to_thread(release.helm, "rollback", "chatrpc", "1", "--timeout=240s")
    assert (names(release), number(release)) == (pods, 3)


async def scaled(release: Release, count: int) -> None:
    release.kubectl("scale", "deployment/chatrpc", f"--replicas={count}")
    await release.until(lambda: len(names(release)) == count, f"{count} pods")


def number(release: Release) -> int:
    """Return the Deployment's number of replicas."""
    return int(release.get("deployment", "chatrpc")["spec"]["replicas"])


async def test_the_only_pod_is_replaced_without_a_loss(release: Release) -> None:
    """The connection must close together with the health change, so that callers that watch health resolve again."""
    values = {**ECHO, "replicas": 1, "config": {"drain": {"delay_seconds": 0}}}
    await changed(release, **values)
    first = names(release)
    async with calling(release.target()) as stub, load(stub) as outcomes:
        await until(lambda: outcomes.total() > 50)
        await changed(release, **_with(values, max_in_flight=500))
        await gone(release, first)
        before = outcomes.total()
        await until(lambda: outcomes.total() > before + 50)
    assert outcomes.keys() == {"whole"}, outcomes


def _with(values: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {**values, "config": {**values["config"], "limits": limits}}


async def test_a_pod_that_is_evicted_loses_no_call(release: Release) -> None:
    """Like `kubectl drain`; the disruption budget allows one eviction at a time."""
    await changed(release, **ECHO)
    pods = sorted(names(release))

    def evict(pod: str) -> None:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        path = f"/api/v1/namespaces/{release.namespace}/pods/{pod}/eviction"
        release.kubectl("create", f"--raw={path}", "--filename=-", input=str(eviction).replace("'", '"'))

    async with calling(release.target()) as stub, load(stub) as outcomes:
        await until(lambda: outcomes.total() > 50)
        await asyncio.to_thread(evict, pods[0])
        with pytest.raises(Exception, match="disruption budget"):
            await asyncio.to_thread(evict, pods[1])
        await gone(release, {pods[0]})
        await release.until(lambda: len(names(release)) == 2, "a new pod replaces it")
    assert outcomes.keys() == {"whole"}, outcomes


async def test_a_new_log_level_applies_to_running_pods(release: Release) -> None:
    await changed(release, **ECHO)
    first = names(release)
    await changed(release, **ECHO, config={"log": {"level": "debug"}})
    assert names(release) == first

    def reloaded() -> bool:
        logs = release.kubectl("logs", "--selector=app.kubernetes.io/name=chatrpc", "--container=chatrpc", "--tail=-1")
        return logs.count('"event":"config_reloaded"') == 2

    await release.until(reloaded, "both pods have a new log level", 180)


async def test_a_key_is_rotated(release: Release, node: Cluster) -> None:
    """As in docs/operating.md."""
    async with Echo(node.host, 0) as echo:
        release.secret("upstream", token="sk-first")
        values = {"apiKey": {"secret": "upstream", "key": "token"}, "config": {"upstream": {"base_url": echo.base_url}}}
        await changed(release, **values)
        async with calling(release.target()) as stub:
            await unary(stub)
            assert echo.requests[-1].headers["authorization"] == "Bearer sk-first"
            first = names(release)
            async with load(stub) as outcomes:
                await until(lambda: outcomes.total() > 20)
                await asyncio.to_thread(release.secret, "upstream", token="sk-second")
                await asyncio.to_thread(release.kubectl, "rollout", "restart", "deployment/chatrpc")
                await asyncio.to_thread(release.kubectl, "rollout", "status", "deployment/chatrpc", "--timeout=110s")
                await gone(release, first)
            await unary(stub)
            assert echo.requests[-1].headers["authorization"] == "Bearer sk-second"
    assert outcomes.keys() == {"whole"}, outcomes


def certificate(authority: trustme.CA, *names: str) -> dict[str, str]:
    """Return the contents of a Secret with a new certificate."""
    made = authority.issue_cert(*names)
    return {
        "tls_crt": b"".join(each.bytes() for each in made.cert_chain_pems).decode(),
        "tls_key": made.private_key_pem.bytes().decode(),
        "ca_crt": authority.cert_pem.bytes().decode(),
    }


def serial(host: str, caller: dict[str, str], folder: Path) -> int:
    """Return the serial number of the certificate that a new connection receives."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    chain = folder / "caller.pem"
    chain.write_text(caller["tls_crt"] + caller["tls_key"])
    context.load_cert_chain(chain)
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, 50051), timeout=5) as plain, context.wrap_socket(plain) as secure:
        shown = secure.getpeercert(binary_form=True)
    assert shown
    return x509.load_der_x509_certificate(shown).serial_number


async def test_a_certificate_is_rotated(release: Release, tmp_path: Path) -> None:
    """Probes work with TLS, and a new certificate applies without a restart."""
    authority = trustme.CA()
    name = f"chatrpc-headless.{release.namespace}.svc.cluster.local"
    server, caller = certificate(authority, name), certificate(authority, "caller.test")
    release.secret("tls", "kubernetes.io/tls", **server)
    values = {**ECHO, "tls": {"secret": "tls", "clientCa": {"secret": "tls"}}, "config": {"allow_insecure": False}}
    await changed(release, **values)
    assert "Phase:          Succeeded" in await asyncio.to_thread(release.helm, "test", "chatrpc")

    credentials = grpc.ssl_channel_credentials(
        server["ca_crt"].encode(), caller["tls_key"].encode(), caller["tls_crt"].encode()
    )
    async with grpc.aio.secure_channel(release.target(), credentials, [("grpc.enable_http_proxy", 0)]) as channel:
        answer = await ChatCompletionServiceStub(channel).CreateChatCompletion(request(), timeout=10)
        assert answer.choices[0].message.content == "You said: Hello!"

    first = names(release)
    host = release.pods()[0]["status"]["podIP"]
    before = serial(host, caller, tmp_path)
    release.secret("tls", "kubernetes.io/tls", **certificate(authority, name))
    await release.until(
        lambda: serial(host, caller, tmp_path) != before, "new connections receive the new certificate", 180
    )
    assert names(release) == first
