"""Identities in the cluster: one authority, a certificate for each program, and a kubeconfig for each client.

Kubernetes takes a client's user from its certificate's common name, and its group from the organization.
"""

import json
from pathlib import Path

import trustme

USERS = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", None),
    "scheduler": ("system:kube-scheduler", None),
    "kubelet": ("system:node:node", "system:nodes"),
    "proxy": ("system:kube-proxy", None),
}


class Identities:
    """Files in a folder: `ca.crt`, `server.crt`, and `NAME.crt`, `NAME.key` and `NAME.kubeconfig` of each user."""

    def __init__(self, folder: Path, url: str, names: list[str]) -> None:
        """`names` are the servers' names and addresses; `url` is the API server's."""
        folder.mkdir(parents=True)
        self.folder, authority = folder, trustme.CA()
        authority.cert_pem.write_to_path(self["ca.crt"])
        self._write("server", authority.issue_cert(*names))
        self._write("accounts", authority.issue_cert("accounts"))  # signs the tokens of service accounts
        for name, (user, group) in USERS.items():
            # Go rejects certificates with an empty list of names.
            self._write(name, authority.issue_cert(name, common_name=user, organization_name=group))
            self[f"{name}.kubeconfig"].write_text(json.dumps(self._kubeconfig(name, url), indent=2))  # JSON is YAML

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def _write(self, name: str, certificate: trustme.LeafCert) -> None:
        certificate.private_key_pem.write_to_path(self[f"{name}.key"])
        certificate.cert_chain_pems[0].write_to_path(self[f"{name}.crt"])

    def _kubeconfig(self, name: str, url: str) -> dict[str, object]:
        cluster = {"server": url, "certificate-authority": str(self["ca.crt"])}
        user = {"client-certificate": str(self[f"{name}.crt"]), "client-key": str(self[f"{name}.key"])}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
