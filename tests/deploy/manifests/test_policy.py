"""Promises of the chart that hold in every scenario."""

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatrpc_server import __version__, cli
from chatrpc_server.settings import load
from deploy.manifests.charts import CHART, NAMESPACE, ROOT, SCENARIOS, TOOLS, Release, kustomized, rendered, run

UNPRIVILEGED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
SLACK_SECONDS = 10
JOBS = dict.fromkeys(SCENARIOS, "chat/chatrpc") | {"tls": "chat/chat"}


def plain(folder: str = "deploy/kubernetes/base") -> Release:
    """Return the manifests without helm."""
    return Release("default", text=kustomized(folder))


@pytest.fixture(params=SCENARIOS)
def release(request: pytest.FixtureRequest) -> Release:
    return Release(request.param)


def labelled(labels: dict[str, str], selector: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def test_pods_have_minimal_privileges(release: Release) -> None:
    for pod in release.pods():
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "a Service named chatrpc would set CHATRPC_PORT"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all(volume.keys() & {"configMap", "secret", "emptyDir"} for volume in pod.get("volumes", []))
        for container in release.containers(pod):
            assert container["securityContext"] == UNPRIVILEGED
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            assert not container["image"].endswith(":latest")
    for account in release.of("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_the_user_is_the_images(release: Release) -> None:
    user = f"{release.pod['securityContext']['runAsUser']}:{release.pod['securityContext']['runAsGroup']}"
    assert f"USER {user}" in (ROOT / "deploy/Dockerfile").read_text().splitlines()


def test_secrets_are_referenced_and_never_created(release: Release) -> None:
    assert not release.of("Secret")
    assert "api_key" not in release.config["upstream"]
    for mount in release.container["volumeMounts"]:
        assert "subPath" not in mount, "such a mount does not receive new contents"


def settings(release: Release, folder: Path) -> Any:
    """Return the settings of the pod, with its volumes in a folder."""
    volumes = {volume["name"]: volume for volume in release.pod["volumes"]}
    for mount in release.container["volumeMounts"]:
        target = folder / mount["mountPath"].lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        for item in volumes[mount["name"]].get("secret", {}).get("items", []):
            (target / item["path"]).write_text("sk-a-key")
        if volumes[mount["name"]].get("configMap", {}).get("name") == "internal-ca":  # in ci/full-values.yaml
            (target / "ca.crt").write_text("a certificate")
    text = yaml.safe_dump(release.config).replace("/etc/chatrpc/", f"{folder}/etc/chatrpc/")
    path = folder / "etc/chatrpc/config/chatrpc.yaml"
    path.write_text(text)
    (mounted,) = (each["value"] for each in release.container["env"] if each["name"] == "CHATRPC_CONFIG")
    assert mounted == "/etc/chatrpc/config/chatrpc.yaml"
    return load(environ={"CHATRPC_CONFIG": str(path)})


def test_the_service_accepts_its_settings(release: Release, tmp_path: Path) -> None:
    loaded = settings(release, tmp_path)
    assert (loaded.upstream.api_key is not None) == ("upstream" in str(release.pod["volumes"]))
    files = [loaded.tls.cert_file, loaded.tls.key_file, loaded.tls.client_ca_file]
    assert all(path.exists() for path in files if path), "each is in a volume"
    assert loaded.listen.port == release.ports["grpc"]
    assert loaded.metrics_listen.port == release.ports["metrics"]


def test_probes_use_the_health_port_without_tls(release: Release, tmp_path: Path) -> None:
    loaded = settings(release, tmp_path)
    where = loaded.health_listen if loaded.tls.cert_file else loaded.listen
    for name, service in {
        "startupProbe": "liveness",
        "livenessProbe": "liveness",
        "readinessProbe": "readiness",
    }.items():
        assert release.container[name]["grpc"] == {"port": where.port, "service": service}
    assert ("grpc-health" in release.ports) == bool(loaded.tls.cert_file)


def test_the_grace_period_suffices_for_the_drain(release: Release, tmp_path: Path) -> None:
    drain = settings(release, tmp_path).drain
    sleep = release.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = sleep + drain.delay_seconds + drain.grace_seconds + SLACK_SECONDS
    assert needed <= release.pod["terminationGracePeriodSeconds"] < needed + 1


def test_a_rollout_removes_no_pod_too_soon(release: Release) -> None:
    spec = release.deployment["spec"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert spec["minReadySeconds"] >= max(30, release.config["drain"]["delay_seconds"])
    assert spec["progressDeadlineSeconds"] == spec["minReadySeconds"] + 570
    for spread in release.pod["topologySpreadConstraints"]:
        assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
        assert labelled(spec["template"]["metadata"]["labels"], spread["labelSelector"]["matchLabels"])


def pod_selectors(release: Release) -> list[dict[str, str]]:
    """Return all selectors of the service's pods."""
    return [
        release.deployment["spec"]["selector"]["matchLabels"],
        *(each["spec"]["selector"] for each in release.of("Service")),
        *(each["spec"]["selector"]["matchLabels"] for each in release.of("PodDisruptionBudget")),
        *(each["spec"]["podSelector"]["matchLabels"] for each in release.of("NetworkPolicy")),
        *(each["spec"]["selector"]["matchLabels"] for each in release.of("PodMonitor")),
    ]


def test_selectors_find_the_pods_and_only_them(release: Release) -> None:
    spec = release.deployment["spec"]
    labels = spec["template"]["metadata"]["labels"]
    hook = release.one("Pod")["metadata"]["labels"]
    for selector in pod_selectors(release):
        assert labelled(labels, selector)
        assert not labelled(hook, selector), "the test hook serves no calls"
    assert not spec["selector"]["matchLabels"].keys() - {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
    for monitor in release.of("ServiceMonitor"):
        found = [
            each
            for each in release.of("Service")
            if labelled(each["metadata"]["labels"], monitor["spec"]["selector"]["matchLabels"])
        ]
        assert len(found) == 1, "a second match would count twice"


def test_two_releases_in_a_namespace_select_only_their_own(release: Release) -> None:
    """Even if one name contains the other."""
    text = rendered(release.scenario, "--set=fullnameOverride=", name="chatrpc-two")
    other = Release(release.scenario, text=text)
    for one, two in ((release, other), (other, release)):
        theirs = [two.deployment["spec"]["template"]["metadata"]["labels"], two.one("Pod")["metadata"]["labels"]]
        theirs += [service["metadata"]["labels"] for service in two.of("Service")]
        for selector in pod_selectors(one):
            assert not [labels for labels in theirs if labelled(labels, selector)]
        for monitor in one.of("ServiceMonitor"):
            selector = monitor["spec"]["selector"]["matchLabels"]
            assert not [labels for labels in theirs if labelled(labels, selector)]
    names = [{(each["kind"], each["metadata"]["name"]) for each in one.all} for one in (release, other)]
    assert not names[0] & names[1]


def test_services(release: Release) -> None:
    name = release.deployment["metadata"]["name"]
    plain, headless = release.one("Service", name), release.one("Service", "-headless")
    assert "clusterIP" not in plain["spec"]
    assert headless["spec"]["clusterIP"] == "None"
    for service in (plain, headless):
        ports = {port["targetPort"]: port["port"] for port in service["spec"]["ports"]}
        assert ports == release.ports, "both have the pod's ports, because a headless Service maps none"
        h2c = [port["name"] for port in service["spec"]["ports"] if "appProtocol" in port]
        assert h2c == ([] if "tls" in release.config else ["grpc"])


def test_only_known_peers_can_call_and_cloud_metadata_is_blocked(release: Release) -> None:
    policy = release.one("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert opened == release.ports.keys()
    for rule in policy["ingress"]:
        assert rule["from"], "an empty list allows all peers"
    hook = {"podSelector": {"matchLabels": release.one("Pod")["metadata"]["labels"]}}
    assert hook in policy["ingress"][0]["from"]
    for peer in chain.from_iterable(rule["to"] for rule in policy["egress"] if "ports" not in rule):
        everywhere = {"0.0.0.0/0": "169.254.169.254/32", "::/0": "fd00:ec2::254/128"}
        if (cidr := peer.get("ipBlock", {}).get("cidr")) in everywhere:
            assert peer["ipBlock"]["except"] == [everywhere[cidr]]


def test_new_pods_are_watched_for_as_long_as_old_ones_drain() -> None:
    spec = Release("default", "--set-json=config.drain.delay_seconds=700.5").deployment["spec"]
    assert (spec["minReadySeconds"], spec["progressDeadlineSeconds"]) == (701, 1271)


def test_a_pod_that_is_not_ready_blocks_no_drain_of_a_node(release: Release) -> None:
    for budget in release.of("PodDisruptionBudget"):
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_either_the_chart_or_an_autoscaler_sets_the_number_of_pods(release: Release) -> None:
    scalers = [*release.of("HorizontalPodAutoscaler"), *release.of("ScaledObject")]
    assert len(scalers) + ("replicas" in release.deployment["spec"]) == 1
    replicas_set = "chatrpc.dev/replicas-unset" not in release.deployment["metadata"].get("annotations", {})
    assert replicas_set == ("replicas" in release.deployment["spec"])
    for scaler in scalers:
        assert scaler["spec"]["scaleTargetRef"]["name"] == release.deployment["metadata"]["name"]


@pytest.mark.parametrize("name", ["chatrpc", "a" * 38, "a" * 39, "a" * 53])
def test_keda_queries_the_pods_of_the_release(name: str) -> None:
    """Kubernetes keeps 58 characters of a pod's name and appends five of its own."""
    release = Release("keda", text=rendered("keda", name=name))
    (trigger,) = release.one("ScaledObject")["spec"]["triggers"]
    full = release.deployment["metadata"]["name"]
    (pattern,) = re.findall(r'pod=~"([^"]+)"', trigger["metadata"]["query"])
    assert re.fullmatch(pattern, f"{full}-6d5f8c9b47-"[:58] + "x7k2p")
    assert not re.fullmatch(pattern, f"{full}-two-6d5f8c9b47-"[:58] + "x7k2p")
    assert f'namespace="{NAMESPACE}"' in trigger["metadata"]["query"]
    assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_the_hook_uses_the_callers_target(release: Release) -> None:
    (container,) = release.one("Pod")["spec"]["containers"]
    assert container["image"] == release.container["image"]
    args, unknown = cli._parser().parse_known_args(container["args"])
    assert not unknown
    target = load(args).listen
    assert target.host in [service["metadata"]["name"] for service in release.of("Service")]
    assert target.port == release.container["readinessProbe"]["grpc"]["port"]


def test_it_is_scraped_in_one_way(release: Release) -> None:
    annotations = release.deployment["spec"]["template"]["metadata"]["annotations"]
    monitors = [*release.of("PodMonitor"), *release.of("ServiceMonitor")]
    expected = {"default": 0, "echo": 0, "gateway": 0, "gateway-tls": 0}.get(release.scenario, 1)
    assert len(monitors) == expected
    by_annotation = annotations.get("prometheus.io/port") == str(release.ports["metrics"])
    assert by_annotation == (release.scenario in ("default", "echo"))
    for monitor in monitors:
        (endpoint,) = monitor["spec"].get("podMetricsEndpoints") or monitor["spec"]["endpoints"]
        assert endpoint["port"] == "metrics"
        assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": JOBS[release.scenario]}]


def test_the_prometheus_operator_is_used_if_the_cluster_has_it() -> None:
    kinds = ("PodMonitor", "PrometheusRule")
    plain = Release("default")
    assert not any(plain.of(kind) for kind in kinds)
    known = Release("default", *(f"--api-versions=monitoring.coreos.com/v1/{kind}" for kind in kinds))
    assert all(len(known.of(kind)) == 1 for kind in kinds)


def test_rules_need_a_job() -> None:
    known = "--api-versions=monitoring.coreos.com/v1/PrometheusRule"
    assert not Release("default", known).of("PrometheusRule"), "annotations do not determine the job"
    named = Release("default", known, "--set=monitoring.job=pods")
    assert 'up{job="pods"}' in str(named.one("PrometheusRule"))
    monitor = Release("full", "--set=monitoring.job=mine").one("ServiceMonitor")
    assert monitor["spec"]["endpoints"][0]["relabelings"][0]["replacement"] == "mine"


def test_the_dashboard_is_the_file() -> None:
    release = Release("full")
    dashboard = release.one("ConfigMap", "-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboard["data"]["chatrpc.json"] == (CHART / "files/dashboard.json").read_text()


def test_the_certificate_is_for_the_names_that_callers_use() -> None:
    release = Release("tls")
    certificate = release.one("Certificate")["spec"]
    assert {volume["secret"]["secretName"] for volume in release.pod["volumes"] if volume["name"] == "tls"} == {
        certificate["secretName"]
    }
    for service in release.of("Service"):
        assert f"{service['metadata']['name']}.{NAMESPACE}.svc.cluster.local" in certificate["dnsNames"]
    assert "chat.example" in certificate["dnsNames"]
    assert "renewBefore" not in certificate, "cert-manager's default: a third of the duration"
    sooner = Release("tls", "--set=tls.certificate.renewBefore=48h").one("Certificate")["spec"]
    assert sooner["renewBefore"] == "48h"


@pytest.mark.parametrize("scenario", ["gateway", "gateway-tls"])
def test_a_route_leads_to_the_service(scenario: str) -> None:
    release = Release(scenario)
    (rule,) = release.one("GRPCRoute")["spec"]["rules"]
    assert rule["matches"][0]["method"]["service"] == "chatrpc.v1.ChatCompletionService"
    assert rule["backendRefs"] == [{"name": "chatrpc", "port": release.ports["grpc"]}]


def test_a_gateway_uses_tls_if_the_pods_require_it() -> None:
    assert not Release("gateway").of("BackendTLSPolicy")
    otherwise = "--set=grpcRoute.backendTlsPolicy.enabled=false"
    assert not Release("gateway-tls", otherwise).of("BackendTLSPolicy")
    release = Release("gateway-tls")
    policy = release.one("BackendTLSPolicy")["spec"]
    (target,) = policy["targetRefs"]
    assert target["name"] == release.one("GRPCRoute")["spec"]["rules"][0]["backendRefs"][0]["name"]
    service = release.one("Service", target["name"])
    (ours,) = yaml.safe_load(SCENARIOS["gateway-tls"].read_text())["grpcRoute"]["backendTlsPolicy"]["caCertificateRefs"]
    assert policy["validation"]["caCertificateRefs"] == [ours]
    assert target["sectionName"] in [port["name"] for port in service["spec"]["ports"]]
    assert policy["validation"]["hostname"] in release.one("Certificate")["spec"]["dnsNames"]


def test_the_plain_manifests_are_the_charts_with_a_key_and_without_helms_parts() -> None:
    ours = Release("default", "--set=apiKey.secret=chatrpc-upstream")
    assert plain().pod == {**ours.pod, "serviceAccountName": "chatrpc"}
    assert plain().config == ours.config
    hook = ours.one("Pod")["metadata"]["labels"]
    text = kustomized("deploy/kubernetes/base")
    assert hook["app.kubernetes.io/name"] not in text
    assert "helm" not in text.lower()
    (callers, _) = plain().one("NetworkPolicy")["spec"]["ingress"]
    assert callers["from"] == [{"podSelector": {}}]
    assert {each["metadata"].get("namespace") for each in plain().all} == {None, "chatrpc"}


def test_the_overlay_changes_image_settings_and_number(tmp_path: Path) -> None:
    overlay = plain("deploy/kubernetes/overlay")
    loaded = settings(overlay, tmp_path)
    assert loaded.upstream.base_url == "https://models.example/v1"
    assert loaded.upstream.api_key, "the file is in the Secret's mount"
    assert {"grpc": loaded.listen.port, "metrics": loaded.metrics_listen.port} == overlay.ports
    drain = loaded.drain.delay_seconds + loaded.drain.grace_seconds
    assert (
        overlay.container["lifecycle"]["preStop"]["sleep"]["seconds"] + drain
        < overlay.pod["terminationGracePeriodSeconds"]
    )
    assert overlay.container["image"] == f"registry.example/chatrpc:{__version__}"
    assert overlay.deployment["spec"]["replicas"] == 3
    (settings_map,) = overlay.of("ConfigMap")
    assert re.fullmatch("chatrpc-settings-[a-z0-9]{10}", settings_map["metadata"]["name"]), "new settings, new pods"


def test_labels_and_annotations_of_the_user_do_not_override_ours() -> None:
    mine = {
        "app.kubernetes.io/name": "other",
        "app.kubernetes.io/version": "7",
        "team": "platform",
    }
    release = Release("default", f"--set-json=podLabels={json.dumps(mine)}")
    template = release.deployment["spec"]["template"]["metadata"]
    assert template["labels"] == {**mine, **release.deployment["spec"]["selector"]["matchLabels"]}
    monitor = Release("tls", '--set-json=monitoring.labels={"app.kubernetes.io/name": "other", "team": "a"}')
    labels = monitor.one("PodMonitor")["metadata"]["labels"]
    assert (labels["app.kubernetes.io/name"], labels["team"]) == ("chatrpc", "a")
    theirs = {"prometheus.io/port": "1", "checksum/config": "0", "a": "b"}
    changed = Release("default", f"--set-json=podAnnotations={json.dumps(theirs)}")
    expected = {**template["annotations"], "prometheus.io/port": "1", "a": "b"}
    assert changed.deployment["spec"]["template"]["metadata"]["annotations"] == expected


def test_the_cluster_can_choose_the_user() -> None:
    """OpenShift requires it."""
    release = Release("default", "--set=fixedUser=false,apiKey.secret=a")
    (upstream,) = (each["secret"] for each in release.pod["volumes"] if "secret" in each)
    assert upstream["defaultMode"] == 0o444, "every user can read it"
    for pod in release.pods():
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_the_hook_runs_on_the_pods_nodes() -> None:
    release = Release("full")
    hook = release.one("Pod")["spec"]
    for field in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "imagePullSecrets"):
        assert hook[field] == release.pod[field]


def test_the_hook_can_share_a_node_with_a_pod() -> None:
    """Otherwise there may be no node for it, because each may have a pod."""
    apart = {
        "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []},
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}},
    }
    release = Release("default", f"--set-json=affinity={json.dumps(apart)}")
    assert release.pod["affinity"] == apart
    assert release.one("Pod")["spec"]["affinity"].keys() == {"nodeAffinity"}


def test_numeric_names_are_text() -> None:
    names = ("apiKey.secret", "apiKey.key", "tls.secret", "tls.clientCa.secret", "tls.clientCa.key")
    names += ("serviceAccount.name", "priorityClassName", "nameOverride")
    release = Release("default", *(f"--set-string={name}=0123" for name in names))
    secrets = {each["name"]: each["secret"] for each in release.pod["volumes"] if "secret" in each}
    assert {each["secretName"] for each in secrets.values()} == {"0123"}
    assert secrets["upstream"]["items"] == secrets["client-ca"]["items"] == [{"key": "0123", "path": "0123"}]
    assert release.pod["serviceAccountName"] == release.pod["priorityClassName"] == "0123"
    assert release.deployment["metadata"]["labels"]["app.kubernetes.io/name"] == "0123"


def test_names_that_yaml_reads_as_other_types_are_text() -> None:
    text = run(TOOLS / "bin/helm", "template", "on", CHART, "--set=nameOverride=on,tls.secret=s", "--namespace=2024")
    release = Release("default", text=text.stdout)
    assert {each["metadata"]["namespace"] for each in release.all} == {"2024"}
    assert {each["metadata"]["name"] for each in release.all} == {"on", "on-headless", "on-test"}


@pytest.mark.parametrize("name", ["a" * 44 + "--bcd", "a" * 45 + "-bcd"])
def test_a_long_name_is_cut_to_a_valid_name(name: str) -> None:
    cut = Release("default", f"--set=fullnameOverride={name}").deployment["metadata"]["name"]
    assert cut == name.partition("-")[0]


def test_the_embedded_upstream_is_called_without_a_proxy() -> None:
    proxy = "http://proxy:3128"
    release = Release("echo", f"--set=config.upstream.proxy={proxy}")
    assert "proxy" not in release.config["upstream"]
    assert Release("default", f"--set=config.upstream.proxy={proxy}").config["upstream"]["proxy"] == proxy


def test_the_domain_of_the_cluster() -> None:
    names = Release("tls", "--set=clusterDomain=corp.example").one("Certificate")["spec"]["dnsNames"]
    assert "chat-headless.chat.svc.corp.example" in names
    assert not [name for name in names if "cluster.local" in name]


@pytest.mark.parametrize(
    ("change", "restarts"),
    [("config.upstream.name=other", True), ("config.limits.max_in_flight=5", True), ("config.log.level=debug", False)],
)
def test_only_settings_that_need_it_create_new_pods(change: str, restarts: bool) -> None:
    before, after = Release("default"), Release("default", f"--set={change}")
    assert before.config != after.config
    assert (before.deployment["spec"]["template"] != after.deployment["spec"]["template"]) == restarts


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
    assert f"ARG VERSION={__version__}\n" in (ROOT / "deploy/Dockerfile").read_text()
    assert Release("default").container["image"] == f"chatrpc:{__version__}"


@pytest.mark.parametrize(("tag", "version"), [("", __version__), ("2.0.0", "2.0.0"), ("a" * 62 + ".b", "a" * 62)])
def test_the_version_label_is_the_image_tag(tag: str, version: str) -> None:
    release = Release("default", f"--set=image.tag={tag}")
    for metadata in (release.deployment["metadata"], release.deployment["spec"]["template"]["metadata"]):
        assert metadata["labels"]["app.kubernetes.io/version"] == version
