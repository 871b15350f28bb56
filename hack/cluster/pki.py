"""Keys, certificates and kubeconfigs of a cluster that lives for hours (openssl; elliptic keys, as they are fast)."""

import json
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.layout import API_ADDRESS, API_SERVICE_ADDRESS, API_URL, NODES, State, machine_name
from hack.tools import run

DAYS = "30"
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")


@dataclass(frozen=True)
class Identity:
    """Who somebody is for the API server: a user name and its group; `kubeconfig` is None for the server itself."""

    name: str
    subject: str
    kubeconfig: Path | None = None
    extension: str | None = None


def make(state: State) -> None:
    """Write a new certificate authority and everybody's certificate and kubeconfig."""
    state.pki.mkdir(parents=True)
    state.pki.chmod(0o700)
    _openssl(
        state, "req", "-x509", *KEY, "-days", DAYS, "-subj", "/CN=podgraft-ca", "-keyout", "ca.key", "-out", "ca.crt"
    )
    _openssl(state, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "service-accounts.key")
    names = f"subjectAltName=IP:{API_ADDRESS},IP:{API_SERVICE_ADDRESS},DNS:kubernetes.default.svc"
    _identify(state, Identity("apiserver", "/CN=kube-apiserver", extension=names))
    _identify(state, Identity("admin", "/O=system:masters/CN=admin", state.admin))
    for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
        _identify(state, Identity(name, f"/CN=system:{name}", state.kubeconfig(name)))
    for node in map(machine_name, NODES):
        _identify(state, Identity(node, f"/O=system:nodes/CN=system:node:{node}", state.kubeconfig(node)))


def _identify(state: State, who: Identity) -> None:
    key, request, certificate = f"{who.name}.key", f"{who.name}.csr", f"{who.name}.crt"
    _openssl(state, "req", *KEY, "-subj", who.subject, "-keyout", key, "-out", request)
    signing = ["x509", "-req", "-in", request, "-CA", "ca.crt", "-CAkey", "ca.key", "-days", DAYS, "-out", certificate]
    if who.extension:
        (state.pki / f"{who.name}.ext").write_text(who.extension)
        signing += ["-extfile", f"{who.name}.ext"]
    _openssl(state, *signing)
    if who.kubeconfig:
        who.kubeconfig.write_text(json.dumps(_kubeconfig(state.pki, who), indent=1))
        who.kubeconfig.chmod(0o600)


def _kubeconfig(pki: Path, who: Identity) -> dict[str, object]:
    cluster = {"server": API_URL, "certificate-authority": str(pki / "ca.crt")}
    user = {"client-certificate": str(pki / f"{who.name}.crt"), "client-key": str(pki / f"{who.name}.key")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "podgraft", "cluster": cluster}],
        "users": [{"name": who.name, "user": user}],
        "contexts": [{"name": "podgraft", "context": {"cluster": "podgraft", "user": who.name}}],
        "current-context": "podgraft",
    }


def _openssl(state: State, *arguments: str) -> None:
    run("openssl", *arguments, cwd=state.pki)
