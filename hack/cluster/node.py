"""The programs of a node: containerd, kubelet, kube-proxy, and what they read."""

import json
import textwrap
from pathlib import Path
from typing import Any

from hack.cluster.binaries import folder
from hack.cluster.layout import (
    CONTAINERD,
    PAUSE_IMAGE,
    POD_RANGE,
    State,
    cgroup,
    machine_address,
    machine_name,
    pod_range,
)
from hack.tools import run


def programs(state: State, number: int) -> dict[str, list[str]]:
    """Write the configuration of a node and return the command of each of its programs by name."""
    private, name = state.machine(number), machine_name(number)
    (private / "cni").mkdir(parents=True, exist_ok=True)
    static_pods(state, number).mkdir(exist_ok=True)
    _write(private / "cni" / "10-bridge.conflist", _cni(number))
    _write(private / "kubelet.yaml", _kubelet(state, private, number))
    _write(private / "proxy.yaml", _proxy(state))
    (private / "containerd.toml").write_text(_containerd(private))
    return {
        "containerd": ["containerd", "--config", str(private / "containerd.toml")],
        "kubelet": [
            str(folder() / "kubelet"),
            f"--config={private}/kubelet.yaml",
            f"--kubeconfig={state.kubeconfig(name)}",
            f"--hostname-override={name}",
            f"--node-ip={machine_address(number)}",
        ],
        "kube-proxy": [str(folder() / "kube-proxy"), f"--config={private}/proxy.yaml", f"--hostname-override={name}"],
    }


def static_pods(state: State, number: int) -> Path:
    """Return the folder of pods that the kubelet starts by itself."""
    return state.machine(number) / "static-pods"


def _write(file: Path, content: dict[str, Any]) -> None:
    # JSON is YAML, and needs no library.
    file.write_text(json.dumps(content, indent=1))


def _cni(number: int) -> dict[str, Any]:
    addresses = {
        "type": "host-local",
        "dataDir": "/run/cni-addresses",
        "ranges": [[{"subnet": pod_range(number)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": "pods0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": addresses,
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}


def _containerd(private: Path) -> str:
    # overlayfs does not stack on overlayfs, as it would where this machine is a container itself.
    kind = run("stat", "--file-system", "--format", "%T", private).strip()
    snapshotter = "native" if kind == "overlayfs" else "overlayfs"
    # Without CAP_SYS_RESOURCE nobody may lower an oom score; containerd must not try.
    return textwrap.dedent(f"""\
        version = 2
        oom_score = 0
        [grpc]
          address = "{CONTAINERD}"
        [plugins."io.containerd.grpc.v1.cri"]
          sandbox_image = "{PAUSE_IMAGE}"
          restrict_oom_score_adj = true
          [plugins."io.containerd.grpc.v1.cri".containerd]
            snapshotter = "{snapshotter}"
            [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
              runtime_type = "io.containerd.runc.v2"
          [plugins."io.containerd.grpc.v1.cri".cni]
            bin_dir = "/usr/lib/cni"
            conf_dir = "{private}/cni"
        """)


def _kubelet(state: State, private: Path, number: int) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",  # noqa: S104 # in the machine's own network namespace
        "cgroupRoot": f"/{cgroup(number)}",
        "staticPodPath": str(static_pods(state, number)),
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
        "volumePluginDir": str(private / "volume-plugins"),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(state.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        # The disk is the user's: only a really full one should evict pods.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        # Tests kill containers again and again; five minutes of back-off would be all that they see.
        "featureGates": {"KubeletCrashLoopBackOffMax": True},
        "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
    }


def _proxy(state: State) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": POD_RANGE,
        "clientConnection": {"kubeconfig": str(state.kubeconfig("kube-proxy"))},
        # These limits belong to the whole kernel, not to a namespace: leave them as they are.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
