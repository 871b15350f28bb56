"""A Deployment of loaded Redis pods, and the LivePatch for them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hack.cluster import disrupt, processes
from hack.cluster.layout import NODES, State, machine_name
from hack.demo.kubernetes import Json, Kubectl
from hack.fleet import bundles
from hack.tools import REPOSITORY, ToolFailedError

EXAMPLE = REPOSITORY / "examples" / "redis" / "deployment.yaml"
PATCH = "fix"
# On the node's disk, so that what a pod's clients met can be read after the pod is gone.
RECORDS = "podgraft-load"
CONNECTIONS = 4
WAIT = "180s"


@dataclass(frozen=True)
class Server:
    """One Redis process of a pod that is there to stay. start_time: ticks since boot."""

    pod: str
    uid: str
    node: str
    container: str
    pid: int
    start_time: int


@dataclass(frozen=True)
class Shop:
    """The pods of one namespace; kubectl is bound to it."""

    kubectl: Kubectl

    def open(self, replicas: int = 3, rate: int = 25) -> None:
        """Make the namespace with the pods, and a ConfigMap for each bundle. rate: requests a second per connection."""
        for node in NODES:
            records(node).mkdir(parents=True, exist_ok=True)
        deployment = _deployment(self.kubectl.namespace, replicas, rate)
        self.kubectl.run("apply", "-f", "-", stdin=json.dumps(_namespace(self.kubectl.namespace)).encode())
        self.kubectl.run("apply", "-f", "-", stdin=json.dumps(deployment).encode())
        for name, file in bundles.ensure().items():
            self.kubectl.run("create", "configmap", name, f"--from-file=bundle.graft={file}")
        self.kubectl.run("rollout", "status", "deployment/redis", f"--timeout={WAIT}")

    def close(self) -> None:
        """Remove everything."""
        self.kubectl.run("delete", "namespace", self.kubectl.namespace, "--ignore-not-found", f"--timeout={WAIT}")

    def pods(self) -> list[Json]:
        """Return the pods that are not on their way out."""
        pods = self.kubectl.json("get", "pods", "--selector=app=redis")["items"]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def servers(self) -> dict[str, Server]:
        """Return the Redis processes that run, by pod."""
        found = {}
        for pod in self.pods():
            meta, statuses = pod["metadata"], pod["status"].get("containerStatuses", ())
            status = next((one for one in statuses if one["name"] == "redis" and "running" in one["state"]), None)
            container = status["containerID"].rpartition("/")[2] if status is not None else ""
            pids = disrupt.in_container(container) if container else []
            started = processes.start_time(pids[0]) if pids else None
            if started is not None:
                found[meta["name"]] = Server(
                    meta["name"], meta["uid"], pod["spec"]["nodeName"], container, pids[0], started
                )
        return found

    def generations(self) -> dict[str, int]:
        """Ask every server what code it runs; by pod."""
        return {name: bundles.generation(server.pid) for name, server in self.servers().items()}

    def patch(self, bundle: str = bundles.FIRST, **spec: Any) -> None:
        """Apply the LivePatch; `spec` is added to the usual one."""
        body = {
            "apiVersion": "podgraft.dev/v1alpha1",
            "kind": "LivePatch",
            "metadata": {"name": PATCH},
            "spec": {
                "bundle": {"configMap": {"name": bundle, "key": "bundle.graft"}},
                "selector": {"matchLabels": {"app": "redis"}},
                "containers": ["redis"],
                "strategy": {"maxParallel": 1, "threadDeadlineSeconds": 30},
            }
            | spec,
        }
        self.kubectl.run("apply", "-f", "-", stdin=json.dumps(body).encode())

    def unpatch(self) -> None:
        """Delete the LivePatch and wait until it is gone."""
        self.kubectl.run("delete", "livepatch", PATCH, "--ignore-not-found", f"--timeout={WAIT}")

    def status(self) -> Json:
        """Return the status of the LivePatch; empty while there is none."""
        found = self.kubectl.json("get", "livepatches")["items"]
        status: Json = next((one.get("status") or {} for one in found if one["metadata"]["name"] == PATCH), {})
        return status

    def patched(self) -> str:
        """Return how many pods are patched, as `2/3`; empty while the status does not say."""
        return str(self.status().get("summary", {}).get("patched", ""))

    def is_ready(self) -> bool:
        """Tell whether the LivePatch is Ready for its present generation."""
        found = self.kubectl.json("get", "livepatch", PATCH)
        status = found.get("status") or {}
        ready = [one["status"] for one in status.get("conditions", ()) if one["type"] == "Ready"]
        return ready == ["True"] and status.get("observedGeneration") == found["metadata"]["generation"]


def records(node: int) -> Path:
    """Return the folder on the host where the load generators of a node write, one folder for each pod."""
    return State.default().machine(node) / "var" / "log" / RECORDS


def number_of(node: str) -> int:
    """Return the number of a node by its name."""
    return next(number for number in NODES if machine_name(number) == node)


def _namespace(name: str) -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _deployment(namespace: str, replicas: int, rate: int) -> Json:
    """Return the example's Deployment with another place for the records of its load."""
    found = (one for one in yaml.safe_load_all(EXAMPLE.read_text()) if one["kind"] == "Deployment")
    deployment: Json | None = next(found, None)
    if deployment is None:
        raise ToolFailedError(f"no Deployment in {EXAMPLE}")
    deployment["metadata"]["namespace"] = namespace
    deployment["spec"]["replicas"] = replicas
    pod = deployment["spec"]["template"]["spec"]
    pod["topologySpreadConstraints"][0]["whenUnsatisfiable"] = "ScheduleAnyway"
    load = next(one for one in pod["containers"] if one["name"] == "load")
    load["command"][load["command"].index("--rate") + 1] = str(rate)
    load["env"] = [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    load["volumeMounts"] = [{"name": "load", "mountPath": "/load", "subPathExpr": "$(POD)"}]
    # The kubelet makes the pod's folder for root.
    load["securityContext"] = {"runAsUser": 0, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    volume = next(one for one in pod["volumes"] if one["name"] == "load")
    del volume["emptyDir"]
    volume["hostPath"] = {"path": f"/var/log/{RECORDS}", "type": "DirectoryOrCreate"}
    return deployment
