"""Operator and agents on the cluster: their pods and processes."""

from dataclasses import dataclass
from pathlib import Path

from hack.cluster import disrupt, processes
from hack.demo import on_cluster
from hack.demo.kubernetes import Json, Kubectl
from hack.tools import ToolFailedError

ENGINE = b"podgraft-engine"


@dataclass(frozen=True)
class System:
    """What the chart has installed."""

    kubeconfig: Path

    @property
    def kubectl(self) -> Kubectl:
        """Kubectl in the namespace of operator and agents."""
        return Kubectl(self.kubeconfig, on_cluster.SYSTEM)

    def pod(self, component: str, node: str | None = None) -> Json | None:
        """Return the pod of the operator, or of the agent of a node; None between an old one and a new one."""
        pods = self.kubectl.json("get", "pods", f"--selector=app.kubernetes.io/component={component}")["items"]
        alive = (pod for pod in pods if "deletionTimestamp" not in pod["metadata"])
        return next((pod for pod in alive if node in (None, pod["spec"].get("nodeName"))), None)

    def process(self, component: str, node: str | None = None) -> int:
        """Return the first process of operator or agent.

        Raises:
            ToolFailedError: it does not run now.
        """
        pod = self.pod(component, node)
        statuses = pod["status"].get("containerStatuses", ()) if pod is not None else ()
        running = [one["containerID"].rpartition("/")[2] for one in statuses if "running" in one["state"]]
        pids = disrupt.in_container(running[0]) if running else []
        if not pids:
            raise ToolFailedError(f"no {component} runs on {node or 'any node'}")
        return pids[0]

    def is_whole(self, nodes: int) -> bool:
        """Tell whether the operator and the agents of so many nodes are ready."""
        pods = self.kubectl.json("get", "pods", "--selector=app.kubernetes.io/name=podgraft")["items"]
        ready = [
            all(one["ready"] for one in pod["status"].get("containerStatuses") or [{"ready": False}]) for pod in pods
        ]
        return len(ready) == nodes + 1 and all(ready)


def engines(agent: int) -> list[int]:
    """Return the engine processes that an agent runs now."""
    found = []
    for pid in processes.children(agent):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if ENGINE in words:
            found.append(pid)
    return found
