"""Nodes and pods as objects, as large as real ones, and a token for each node's agent."""

import asyncio
import hashlib
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from podgraft_kube.client import Json, Kube

AT_A_TIME = 16
T = TypeVar("T")


@dataclass(frozen=True)
class Fleet:
    """So many nodes with so many pods of one service each; system: the namespace of operator and agents."""

    namespace: str
    nodes: int
    pods_per_node: int
    system: str = "podgraft-system"
    seed: int = 1

    @property
    def pods(self) -> int:
        """How many pods the service has."""
        return self.nodes * self.pods_per_node

    def node(self, number: int) -> str:
        """Return the name of a node."""
        return f"{self.namespace}-node-{number:04}"

    def names(self) -> list[str]:
        """Return the names of all nodes."""
        return [self.node(number) for number in range(self.nodes)]

    async def create(self, kube: Kube) -> dict[str, str]:
        """Create nodes, pods, and a pod of the agent on each node; return node -> token of its agent."""
        await kube.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        await _all(lambda name: kube.create("/api/v1/nodes", _node(name)), self.names())
        # A scheduler spreads the pods of a service: neighbours by name are seldom on one node.
        places = [name for name in self.names() for _ in range(self.pods_per_node)]
        random.Random(self.seed).shuffle(places)  # noqa: S311 - repeatable, keeps no secret
        made = [(_pod(f"shop-7d4b9c6f5d-{number:05}", node), self.namespace) for number, node in enumerate(places)]
        made += [(_agent_pod(node), self.system) for node in self.names()]
        await _all(lambda one: _run_pod(kube, *one), made)
        tokens: dict[str, str] = {}

        async def take(node: str) -> None:
            tokens[node] = await _token(kube, self.system, node)

        await _all(take, self.names())
        return tokens


async def _all(action: Callable[[T], Awaitable[object]], items: Iterable[T]) -> None:
    """Do it to all, some at a time; raises the first error."""
    waiting = iter(items)

    async def work() -> None:
        for one in waiting:
            await action(one)

    async with asyncio.TaskGroup() as workers:
        for _ in range(AT_A_TIME):
            workers.create_task(work())


async def _run_pod(kube: Kube, body: Json, namespace: str) -> None:
    """Create a pod and say, as its kubelet would, that its containers run."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    await kube.create(path, body)
    await kube.patch(f"{path}/{body['metadata']['name']}/status", {"status": _running(body)})


async def _token(kube: Kube, system: str, node: str) -> str:
    """Return a token as the kubelet mounts it: bound to the agent's pod on that node."""
    base = f"/api/v1/namespaces/{system}"
    pod = await kube.get(f"{base}/pods/{_agent_name(node)}")
    bound = {"kind": "Pod", "apiVersion": "v1", "name": _agent_name(node), "uid": pod["metadata"]["uid"]}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"boundObjectRef": bound}}
    answer = await kube.create(f"{base}/serviceaccounts/podgraft-agent/token", body)
    token: str = answer["status"]["token"]
    return token


def _agent_name(node: str) -> str:
    return f"agent-{node}"


def _node(name: str) -> Json:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}}}


def _agent_pod(node: str) -> Json:
    meta = {"name": _agent_name(node), "labels": {"app": "podgraft-agent"}}
    spec = {"nodeName": node, "serviceAccountName": "podgraft-agent", "containers": [_container("agent")]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def _pod(name: str, node: str) -> Json:
    """Return a pod with what Deployments, charts and the scheduler put into one: some KiB."""
    labels = {"app": "shop", "pod-template-hash": "7d4b9c6f5d", "app.kubernetes.io/managed-by": "Helm"}
    labels |= {f"app.kubernetes.io/{key}": "shop" for key in ("name", "instance", "part-of", "component")}
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-7d4b9c6f5d", "controller": True}
    token = {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}
    gone = [{"key": f"node.kubernetes.io/{key}", "operator": "Exists"} for key in ("not-ready", "unreachable")]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {f"checksum/{key}": hashlib.sha256(key.encode()).hexdigest() for key in ("config", "tls")},
            "ownerReferences": [owner | {"uid": str(uuid.UUID(int=1)), "blockOwnerDeletion": True}],
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "shop",
            "containers": [_container("app"), _container("proxy")],
            "volumes": [
                {"name": "config", "configMap": {"name": "shop"}},
                {"name": "token", "projected": {"sources": [token, {"configMap": {"name": "kube-root-ca.crt"}}]}},
            ],
            "tolerations": [one | {"effect": "NoExecute", "tolerationSeconds": 300} for one in gone],
        },
    }


def _container(name: str) -> Json:
    probe = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10, "failureThreshold": 3}
    amount = {"cpu": "100m", "memory": "128Mi"}
    fields = {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace", "NODE_NAME": "spec.nodeName"}
    env: list[Json] = [{"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}} for key, path in fields.items()]
    env += [{"name": f"SHOP_{key}", "value": f"https://{key.lower()}.shop.svc:8443"} for key in ("DB", "CACHE", "MAIL")]
    mounts = {"config": "/etc/shop", "token": "/var/run/secrets/tokens"} if name != "agent" else {}
    return {
        "name": name,
        "image": _image(name),
        "env": env,
        "ports": [{"name": "http", "containerPort": 8080}],
        "resources": {"requests": amount, "limits": amount},
        "livenessProbe": probe,
        "readinessProbe": probe,
        "volumeMounts": [{"name": key, "mountPath": path, "readOnly": True} for key, path in mounts.items()],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _image(name: str) -> str:
    return f"registry.example/shop/{name}@sha256:{hashlib.sha256(name.encode()).hexdigest()}"


def _running(pod: Json) -> Json:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    statuses = [
        {
            "name": one["name"],
            "containerID": f"containerd://{uuid.uuid4().hex}{uuid.uuid4().hex}",
            "state": {"running": {"startedAt": now}},
            "ready": True,
            "started": True,
            "restartCount": 0,
            "image": one["image"],
            "imageID": one["image"],
        }
        for one in pod["spec"]["containers"]
    ]
    return {
        "phase": "Running",
        "hostIP": "192.0.2.1",
        "podIP": "198.51.100.1",
        "startTime": now,
        "qosClass": "Guaranteed",
        "conditions": [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in kinds],
        "containerStatuses": statuses,
    }
