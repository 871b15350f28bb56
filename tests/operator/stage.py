"""Pods and nodes as objects, and a test that answers for the nodes as an agent does."""

import base64
import hashlib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apiserver import GROUP, Api, Json, Refused
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from podgraft_bundle.bundle import encode, make_bundle
from podgraft_bundle.manifest import Manifest
from podgraft_bundle.trust import sign

KEY = Ed25519PrivateKey.from_private_bytes(b"the key that the tests trust    ")
NEXT_KEY = Ed25519PrivateKey.from_private_bytes(b"the key that will take its place")
STRANGER = Ed25519PrivateKey.from_private_bytes(b"a key that nobody here trusts   ")
OBJECT = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x01\x00\x3e\x00" + bytes(44)


def wait(check: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Poll until check() is true, return what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def make_graft(
    name: str = "redis-fix",
    cve: str = "CVE-2025-32023",
    keys: tuple[Ed25519PrivateKey, ...] = (KEY,),
    content: bytes = OBJECT,
) -> bytes:
    """Return a bundle that decodes, signed by these keys; nobody applies it here."""
    part = {"symbol": "f", "offset": 4096, "size": 16, "sha256": "0" * 64}
    manifest = Manifest.model_validate(
        {
            "name": name,
            "version": "1",
            "cves": [cve],
            "module": {"name": "redis-server", "build_id": "ab" * 20},
            "functions": [{"entry": part, "new_symbol": "f"}],
            "object": {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        }
    )
    bundle = make_bundle(manifest, content)
    for key in keys:
        bundle = sign(bundle, key)
    return encode(bundle)


def write_trust(folder: Path, *keys: Ed25519PrivateKey) -> Path:
    """Fill a folder with public keys, as the chart's ConfigMap does, and return it."""
    for index, key in enumerate(keys):
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"key-{index}.pem").write_bytes(pem)
    return folder


@dataclass
class Cluster:
    """One namespace; node names start with it, so that tests do not meet."""

    api: Api
    name: str
    pods: dict[str, Json] = field(default_factory=dict)

    def path(self, plural: str, name: str = "") -> str:
        base = f"{GROUP}/namespaces" if plural == "livepatches" else "/api/v1/namespaces"
        return f"{base}/{self.name}/{plural}" + (f"/{name}" if name else "")

    def node(self, number: int) -> str:
        return f"{self.name}-n{number}"

    def node_path(self, number: int) -> str:
        return f"{GROUP}/nodepatches/{self.node(number)}"

    def add_pod(self, name: str, node: int, labels: dict[str, str] | None = None) -> Json:
        """Create a pod and say, as the kubelet would, that its two containers run."""
        containers = [{"name": one, "image": "x"} for one in ("redis", "load")]
        meta = {"name": name, "labels": {"app": "redis"} if labels is None else labels}
        spec = {"nodeName": self.node(node), "containers": containers, "terminationGracePeriodSeconds": 0}
        self.api.create(self.path("pods"), {"metadata": meta, "spec": spec})
        return self.run_containers(name)

    def run_containers(self, name: str, restarts: int = 0) -> Json:
        """Give the containers of a pod new ids, as a restart does, and let the pod be ready."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        statuses = [
            {
                "name": one,
                "containerID": f"containerd://{uuid.uuid4().hex * 2}",
                "state": {"running": {"startedAt": now}},
                "ready": True, "restartCount": restarts, "image": "x", "imageID": "x",
            }
            for one in ("redis", "load")
        ]  # fmt: skip
        status = {"phase": "Running", "containerStatuses": statuses}
        self.pods[name] = self.api.patch(self.path("pods", name) + "/status", {"status": status})
        return self.set_ready(name)

    def set_ready(self, name: str, truth: str = "True") -> Json:
        """Say, as the kubelet would, whether a pod's readiness probes pass."""
        status = {"conditions": [{"type": "Ready", "status": truth}]}
        self.pods[name] = self.api.patch(self.path("pods", name) + "/status", {"status": status})
        return self.pods[name]

    def add_config_map(self, data: bytes, name: str = "fix") -> None:
        binary = {"bundle.graft": base64.b64encode(data).decode()}
        self.api.create(self.path("configmaps"), {"metadata": {"name": name}, "binaryData": binary})

    def apply(self, name: str = "lp", **spec: Any) -> Json:
        """Create a LivePatch for app=redis from ConfigMap "fix", or as `spec` says."""
        whole = {
            "bundle": {"configMap": {"name": "fix"}},
            "selector": {"matchLabels": {"app": "redis"}},
            "containers": ["redis"],
            "strategy": {"maxParallel": "100%"},
        } | spec
        body = {"apiVersion": "podgraft.dev/v1alpha1", "kind": "LivePatch", "metadata": {"name": name}}
        return self.api.create(self.path("livepatches"), body | {"spec": whole})

    def edit(self, name: str = "lp", **spec: Any) -> Json:
        """Change the spec of a LivePatch."""
        return self.api.patch(self.path("livepatches", name), {"spec": spec})

    def annotate(self, key: str, value: str, name: str = "lp") -> Json:
        """Ask for something by annotation, as the kubectl plugin does."""
        return self.api.patch(self.path("livepatches", name), {"metadata": {"annotations": {key: value}}})

    def live_patch(self, name: str = "lp") -> Json:
        return self.api.get(self.path("livepatches", name))

    def conditions(self, name: str = "lp") -> dict[str, Json]:
        """Return the conditions by type, empty while the operator has not seen this generation."""
        body = self.live_patch(name)
        status = body.get("status", {})
        if status.get("observedGeneration") != body["metadata"]["generation"]:
            return {}
        return {one["type"]: one for one in status.get("conditions", [])}

    def wait_condition(self, kind: str, reason: str, name: str = "lp", seconds: float = 20.0) -> Json:
        """Wait until a condition is true for this reason."""

        def holds() -> Json | None:
            one = self.conditions(name).get(kind, {})
            return one if (one.get("status"), one.get("reason")) == ("True", reason) else None

        try:
            found: Json = wait(holds, f"{kind} is true because of {reason}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; status is {self.live_patch(name).get('status')}") from error
        return found

    def items(self, number: int) -> list[Json]:
        """Return the work that the operator gave to a node."""
        try:
            found: list[Json] = self.api.get(self.node_path(number)).get("spec", {}).get("items", [])
        except Refused as error:
            if error.status != 404:
                raise
            return []
        return found

    def wait_items(self, number: int, desired: str = "Applied", count: int = 1) -> list[Json]:
        def there() -> list[Json]:
            found = self.items(number)
            return found if [one["desired"] for one in found] == [desired] * count else []

        found: list[Json] = wait(there, f"{count} items with desired {desired} on node {number}")
        return found

    def answer(self, number: int, phase: str | None = None, **process: Any) -> None:
        """Answer all items of a node, as its agent would: done, or in `phase` with these process fields."""
        reports = []
        for item in self.items(number):
            mine = phase or item["desired"]
            done = mine == "Applied"
            one = {
                "container": item["containers"][0]["name"],
                "pid": 100, "startTime": 5, "phase": mine, "threadsTotal": 8,
                "threadsMigrated": 8 if done else 0, "maxHeldMicroseconds": 12.5,
            } | process  # fmt: skip
            reports.append(
                {
                    "id": item["id"], "version": item["version"], "phase": mine, "desired": item["desired"],
                    "processCount": 1, "threadsTotal": 8, "threadsMigrated": one["threadsMigrated"],
                    "maxHeldMicroseconds": 12.5, "processes": [one],
                }
            )  # fmt: skip
        status = {"observedGeneration": 1, "heartbeat": "2026-01-01T00:00:00Z", "items": reports}
        self.api.patch(self.node_path(number) + "/status", {"status": status})

    def gone(self, name: str = "lp") -> bool:
        return not self.api.exists(self.path("livepatches", name))

    def remove(self) -> None:
        """Remove what a later test could see; the namespace stays, for no controller would empty it."""
        for one in self.api.get(self.path("livepatches"))["items"]:
            where = self.path("livepatches", one["metadata"]["name"])
            self.api.patch(where, {"metadata": {"finalizers": []}})
            if self.api.exists(where):
                self.api.delete(where)
        for one in self.api.get(self.path("pods"))["items"]:
            self.api.delete(self.path("pods", one["metadata"]["name"]) + "?gracePeriodSeconds=0")
        for one in self.api.get(f"{GROUP}/nodepatches")["items"]:
            if one["metadata"]["name"].startswith(f"{self.name}-n"):
                try:
                    self.api.delete(f"{GROUP}/nodepatches/{one['metadata']['name']}")
                except Refused as error:
                    if error.status != 404:  # the operator may have been faster
                        raise
