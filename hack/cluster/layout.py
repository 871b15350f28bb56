"""Names, addresses and folders of the local cluster.

198.18.0.0/15 is set aside for tests of network devices (RFC 2544); nothing else on a machine uses it.
"""

from dataclasses import dataclass
from pathlib import Path

from hack.tools import cache

NODES = (1, 2, 3)
CONTROL_PLANE = 0
MACHINES = (CONTROL_PLANE, *NODES)
BRIDGE = "pgn0"
HOST_ADDRESS = "198.18.0.254"
API_ADDRESS = "198.18.0.1"
API_URL = f"https://{API_ADDRESS}:6443"
SERVICE_RANGE = "198.19.0.0/24"
API_SERVICE_ADDRESS = "198.19.0.1"
POD_RANGE = "198.18.16.0/20"
CONTAINERD = "/run/containerd/containerd.sock"
POINTER = Path("/run/podgraft-cluster")
PAUSE_IMAGE = "localhost/pause:1"


def machine_name(number: int) -> str:
    """Return the host name: control-plane, node1 and so on."""
    return f"node{number}" if number else "control-plane"


def machine_address(number: int) -> str:
    """Return the address on the bridge, without prefix length."""
    return f"198.18.0.{10 + number}" if number else API_ADDRESS


def pod_range(number: int) -> str:
    """Return the addresses of the pods of one node."""
    return f"198.18.{16 + number}.0/24"


def veth(number: int) -> str:
    """Return the name of a machine's cable end at the bridge."""
    return f"pgv{number}"


def cgroup(number: int) -> str:
    """Return the name of the folder that holds a node's pods in every cgroup hierarchy."""
    return f"pgnode{number}"


@dataclass(frozen=True)
class State:
    """Where a cluster keeps its files; gone after `down`, but for the folder itself."""

    root: Path

    @classmethod
    def default(cls) -> "State":
        """Return the state of the cluster that runs, else of one to come.

        Bridge and addresses are there once on a machine; whoever calls with another cache must find the same cluster.
        """
        return cls(POINTER.readlink() if POINTER.exists() else cache() / "cluster")

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.root / "pki"

    @property
    def logs(self) -> Path:
        """One log for each program; kept until the next `up`, because they tell why something failed."""
        return self.root / "log"

    @property
    def admin(self) -> Path:
        """The kubeconfig for users."""
        return self.root / "admin.kubeconfig"

    def kubeconfig(self, name: str) -> Path:
        """Return the kubeconfig of one component."""
        return self.root / f"{name}.kubeconfig"

    def record(self, number: int) -> Path:
        """Return the file that says which process is the machine."""
        return self.root / f"machine{number}.json"

    def machine(self, number: int) -> Path:
        """Return the private files of one machine."""
        return self.root / f"machine{number}"
