"""Programs of a node: containerd and the kubelet run pods; kube-proxy and CoreDNS make them reachable.

None of them runs as a pod, so that the cluster has only a test's own pods.
"""

import json

from deploy.kubernetes.place import CLUSTER_DOMAIN, Place, Program

METADATA = "169.254.169.254"
PAUSE = "localhost/pause:test"
NAME = "node"
SOCKET = "containerd.sock"


def containerd(place: Place) -> Program:
    """Return containerd. Its socket is a file in the folder, so that programs outside of the machine reach it too."""
    networks = place.folder / "cni"
    networks.mkdir()
    network = {
        "type": "ptp",  # a route to each pod, because on a bridge packets could bypass kube-proxy's rules
        "ipam": {"type": "host-local", "subnet": place.pods, "routes": [{"dst": "0.0.0.0/0"}]},
    }
    conflist = {"cniVersion": "1.0.0", "name": "pods", "plugins": [network]}
    (networks / "pods.conflist").write_text(json.dumps(conflist))
    settings = f"""
version = 3
[grpc]
address = "{place.folder / SOCKET}"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true  # because root without CAP_SYS_RESOURCE cannot lower it
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{networks}"
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/opt"
[plugins."io.containerd.nri.v1.nri"]
disable = true
"""
    file = place.folder / "containerd.toml"
    file.write_text(settings)
    return place.program("containerd", config=file)


def kubelet(place: Place) -> Program:
    plenty = ["imagefs.available", "imagefs.inodesFree", "memory.available", "nodefs.available", "nodefs.inodesFree"]
    configuration = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": place.address,
        "healthzBindAddress": place.address,
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(place.who["ca.crt"])}},
        "tlsCertFile": str(place.who["server.crt"]),
        "tlsPrivateKeyFile": str(place.who["server.key"]),
        "containerRuntimeEndpoint": f"unix://{place.folder / SOCKET}",
        "clusterDNS": [place.address],
        "clusterDomain": CLUSTER_DOMAIN,
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "evictionHard": dict.fromkeys(plenty, "0%"),  # so that a full disk does not affect the tests
        "imageGCHighThresholdPercent": 100,
        "volumePluginDir": "/var/lib/kubelet/plugins",
    }
    return _configured(
        place,
        "kubelet",
        configuration,
        ready=f"http://{place.address}:10248/healthz",
        kubeconfig=place.who["kubelet.kubeconfig"],
        hostname_override=NAME,
        node_ip=place.address,
    )


def proxy(place: Place) -> Program:
    configuration = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(place.who["proxy.kubeconfig"])},
        "hostnameOverride": NAME,
        "bindAddress": place.address,
        "healthzBindAddress": f"{place.address}:10256",
        "clusterCIDR": place.pods,
        "conntrack": {"maxPerCore": 0, "min": 0},  # keep the machine's value
        "oomScoreAdj": 0,
    }
    return _configured(place, "kube-proxy", configuration, ready=f"http://{place.address}:10256/healthz")


def dns(place: Place) -> Program:
    """Return the DNS server of pods. Names outside of the cluster do not exist."""
    file = place.folder / "Corefile"
    file.write_text(f"""
{CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
    bind {place.address}
    errors
    ready {place.address}:8181
    kubernetes {{
        kubeconfig {place.who["admin.kubeconfig"]}
    }}
    loadbalance
}}
. {{
    bind {place.address}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
""")
    return Program("dns", [str(place.tools / "dns"), f"-conf={file}"], f"http://{place.address}:8181/ready")


def policies(place: Place) -> Program:
    """Return kube-router, which only enforces NetworkPolicies here."""
    return place.program(
        "kube-router",
        ready=f"http://{place.address}:20244/healthz",
        kubeconfig=place.who["admin.kubeconfig"],
        hostname_override=NAME,
        run_router="false",
        run_service_proxy="false",
        service_cluster_ip_range=place.services,
    )


def metadata(place: Place) -> Program:
    """Return a stand-in for the clouds' metadata service, which has keys and sometimes DNS. Here it only listens."""
    gateway = "169.254.169.253"
    serve = f"ip netns exec metadata python3 -m http.server --bind {METADATA} --directory {place.folder / 'log'}"
    script = [
        "ip netns add metadata",
        "ip link add metadata type veth peer name eth0 netns metadata",
        f"ip address add {gateway}/30 dev metadata",
        "ip link set metadata up",
        f"ip -n metadata address add {METADATA}/30 dev eth0",
        "ip -n metadata link set eth0 up",
        f"ip -n metadata route add default via {gateway}",
        f"({serve} 53 & {serve} 80)",
    ]
    return Program("metadata", ["bash", "-c", " && ".join(script)], "")


def _configured(place: Place, name: str, configuration: dict[str, object], ready: str, **flags: object) -> Program:
    file = place.folder / f"{name}.json"
    file.write_text(json.dumps(configuration, indent=2))  # JSON is YAML
    return place.program(name, ready=ready, config=file, **flags)
