"""Programs of every cluster. Settings that a test could observe are those of kubeadm."""

from deploy.kubernetes.place import CLUSTER_DOMAIN, Place, Program


def etcd(place: Place, port: int, peer_port: int) -> Program:
    """Return etcd, which listens on 127.0.0.1 of the machine, because only the API server uses it."""
    url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    return place.program(
        "etcd",
        ready=f"{url}/health" if not place.number else "",
        data_dir=place.folder / "etcd",
        listen_client_urls=url,
        advertise_client_urls=url,
        listen_peer_urls=peer_url,
        initial_advertise_peer_urls=peer_url,
        initial_cluster=f"default={peer_url}",
        unsafe_no_fsync="true",  # because the data need not survive a power cut
        log_level="warn",
    )


def api_server(place: Place, port: int, etcd_port: int, *_: int) -> Program:
    """Return the API server with the default admission plugins, including PodSecurity, and kubeadm's."""
    who = place.who
    return place.program(
        "kube-apiserver",
        ready=f"https://{place.address}:{port}/readyz",
        etcd_servers=f"http://127.0.0.1:{etcd_port}",
        advertise_address=place.address,
        # Pods find the server by its endpoints, which cannot be loopback addresses.
        endpoint_reconciler_type="lease" if place.number else "none",
        service_cluster_ip_range=place.services,
        authorization_mode="Node,RBAC",
        enable_admission_plugins="NodeRestriction",
        allow_privileged="true",
        client_ca_file=who["ca.crt"],
        service_account_issuer=f"https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        service_account_key_file=who["accounts.crt"],
        service_account_signing_key_file=who["accounts.key"],
        kubelet_certificate_authority=who["ca.crt"],
        kubelet_client_certificate=who["admin.crt"],
        kubelet_client_key=who["admin.key"],
        kubelet_preferred_address_types="InternalIP",  # because the node's name is in no DNS
        **_listening(place, port),
    )


def controller_manager(place: Place, port: int) -> Program:
    return place.program(
        "kube-controller-manager",
        ready=f"https://{place.address}:{port}/healthz",
        kubeconfig=place.who["controller-manager.kubeconfig"],
        use_service_account_credentials="true",
        service_account_private_key_file=place.who["accounts.key"],
        root_ca_file=place.who["ca.crt"],
        leader_elect="false",
        **_listening(place, port),
    )


def scheduler(place: Place, port: int) -> Program:
    return place.program(
        "kube-scheduler",
        ready=f"https://{place.address}:{port}/healthz",
        kubeconfig=place.who["scheduler.kubeconfig"],
        leader_elect="false",
        **_listening(place, port),
    )


def _listening(place: Place, port: int) -> dict[str, object]:
    return {
        "bind_address": place.address,
        "secure_port": port,
        "tls_cert_file": place.who["server.crt"],
        "tls_private_key_file": place.who["server.key"],
    }
