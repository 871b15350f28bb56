"""The programs of machine 0: etcd and the Kubernetes control plane."""

from hack.cluster.binaries import folder
from hack.cluster.layout import API_ADDRESS, SERVICE_RANGE, State

ETCD = "http://127.0.0.1:2379"


def programs(state: State) -> dict[str, list[str]]:
    """Return the command of each program by its name; they wait for each other by themselves."""
    return {
        "etcd": _etcd(),
        "kube-apiserver": _apiserver(state),
        "kube-controller-manager": [
            str(folder() / "kube-controller-manager"),
            f"--kubeconfig={state.kubeconfig('kube-controller-manager')}",
            f"--root-ca-file={state.pki}/ca.crt",
            f"--service-account-private-key-file={state.pki}/service-accounts.key",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
        ],
        "kube-scheduler": [
            str(folder() / "kube-scheduler"),
            f"--kubeconfig={state.kubeconfig('kube-scheduler')}",
            "--leader-elect=false",
        ],
    }


def _etcd() -> list[str]:
    # No fsync: the cluster does not outlive its machine, and a slow disk would be felt in every request.
    return [
        "etcd",
        "--data-dir=/var/lib/etcd",
        f"--listen-client-urls={ETCD}",
        f"--advertise-client-urls={ETCD}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
    ]


def _apiserver(state: State) -> list[str]:
    pki = state.pki
    return [
        str(folder() / "kube-apiserver"),
        f"--etcd-servers={ETCD}",
        f"--bind-address={API_ADDRESS}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/service-accounts.key",
        f"--service-account-signing-key-file={pki}/service-accounts.key",
        # Node names mean nothing to a resolver here: logs and exec go to the address of the node.
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={pki}/admin.crt",
        f"--kubelet-client-key={pki}/admin.key",
    ]
