"""An API server with a fleet, its agents and an operator as processes, and what is asked of them."""

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from apiserver import GROUP, Api, free_port, running
from installed import account_token
from stage import KEY, OBJECT, make_graft, write_trust

from bench.harness import BenchFailedError
from bench.scale.agents import PATCH, client
from bench.scale.fleet import Fleet
from bench.scale.meters import read, total, watches
from podgraft_kube.client import Json

POLL_SECONDS = 0.25
# As much code as a fix of some functions has, with its relocations and names.
OBJECT_BYTES = 40_000
BIN = Path(sys.executable).parent


@dataclasses.dataclass
class Operator:
    """An operator process that runs, and where it can be asked."""

    process: "subprocess.Popen[bytes]"
    metrics: str

    def objects(self, kind: str) -> int:
        """Return how many objects of a kind it knows; 0 while it does not answer."""
        try:
            return int(total(read(self.metrics), "podgraft_operator_objects", kind=kind))
        except OSError:
            return 0


@dataclasses.dataclass
class Stage:
    """An API server with a fleet; folder: for logs and keys; patience: seconds that any phase may take."""

    api: Api
    fleet: Fleet
    folder: Path
    patience: float = 900.0

    def __post_init__(self) -> None:
        self.lps = f"{GROUP}/namespaces/{self.fleet.namespace}/livepatches"
        self.trust = self.folder / "trust"
        self.trust.mkdir()
        write_trust(self.trust, KEY)

    def build(self) -> dict[str, str]:
        """Create all objects and the bundle; return node -> token of its agent."""
        tokens = asyncio.run(self._build())
        content = OBJECT + random.Random(1).randbytes(OBJECT_BYTES)  # noqa: S311 - repeatable, keeps no secret
        data = base64.b64encode(make_graft(PATCH, content=content)).decode()
        path = f"/api/v1/namespaces/{self.fleet.namespace}/configmaps"
        self.api.create(path, {"metadata": {"name": PATCH}, "binaryData": {"bundle.graft": data}})
        return tokens

    async def _build(self) -> dict[str, str]:
        async with client(self.api.url, self.api.ca, self.api.token) as kube:
            return await self.fleet.create(kube)

    @contextlib.contextmanager
    def agents(self, tokens: dict[str, str], processes: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
        """Run the agents, in so many processes; each writes how late it was to a file when it is ended."""
        with contextlib.ExitStack() as stack:
            children = []
            for number in range(processes):
                mine = {node: tokens[node] for node in sorted(tokens)[number::processes]}
                place = {
                    "url": self.api.url, "ca": self.api.ca, "namespace": self.fleet.system,
                    "trust": str(self.trust), "folder": str(self.folder / "caches"), "agents": mine,
                }  # fmt: skip
                file = self.folder / f"agents-{number}.json"
                file.write_text(json.dumps(place))
                command: list[str | Path] = [sys.executable, "-m", "bench.scale.agents", file]
                children.append(stack.enter_context(running(command, self.folder / f"agents-{number}.log")))
            # With the operator's own there may be one more.
            self.wait(lambda: watches(self.api, "nodepatches") >= len(tokens), "the agents follow their NodePatches")
            yield children
            for child in children:
                if child.poll() is not None:
                    raise BenchFailedError(f"agents ended by themselves; see {self.folder}/agents-*.log")
                child.send_signal(signal.SIGTERM)
                child.wait(60)

    @contextlib.contextmanager
    def operator(self) -> Iterator[Operator]:
        """Run an operator with the chart's rights and its default settings."""
        mine = Api(self.api.url, self.api.ca, account_token(self.api, "podgraft-operator"))
        port = str(free_port())
        environment = os.environ | {
            "KUBECONFIG": str(mine.kubeconfig(self.folder / "operator")),
            "PODGRAFT_NAMESPACE": self.fleet.system,
            "PODGRAFT_TRUST_DIR": str(self.trust),
            "PODGRAFT_LIVENESS_PORT": str(free_port()),
            "PODGRAFT_METRICS_PORT": port,
        }
        with running([BIN / "podgraft-operator"], self.folder / "operator.log", env=environment) as process:
            one = Operator(process, f"http://127.0.0.1:{port}")
            yield one
            if process.poll() not in {None, -signal.SIGKILL}:
                raise BenchFailedError(f"the operator ended by itself; see {self.folder}/operator.log")

    def wait_for_objects(self, operator: Operator) -> None:
        """Wait until an operator knows all pods, those of the agents too."""
        pods = self.fleet.pods + self.fleet.nodes
        self.wait(lambda: operator.objects("pods") >= pods, "the operator knows all pods")

    def apply(self, name: str) -> None:
        """Create the LivePatch: default strategy, 25 % of the pods at a time."""
        spec = {
            "bundle": {"configMap": {"name": PATCH}},
            "selector": {"matchLabels": {"app": "shop"}},
            "containers": ["app"],
        }
        body = {"apiVersion": "podgraft.dev/v1alpha1", "kind": "LivePatch", "metadata": {"name": name}, "spec": spec}
        self.api.create(self.lps, body)

    def patched(self, name: str) -> tuple[int, bool]:
        """Return how many pods are patched, and whether the rollout is done."""
        body = self.api.get(f"{self.lps}/{name}")
        status = body.get("status", {})
        ready = any(
            (one["type"], one["status"], one["reason"]) == ("Ready", "True", "Patched")
            for one in status.get("conditions", ())
        )
        return status.get("pods", {}).get("patched", 0), ready

    def wait_patched(self, name: str, share: float = 1.0) -> list[tuple[float, int]]:
        """Wait until a share of the pods is patched, all of them until Ready; return (seconds, pods) on the way."""
        began, curve = time.monotonic(), []

        def there() -> bool:
            pods, ready = self.patched(name)
            curve.append((round(time.monotonic() - began, 2), pods))
            return ready if share == 1.0 else pods >= share * self.fleet.pods

        self.wait(there, f"{share:.0%} of the pods are patched")
        return curve

    def wait_gone(self, name: str) -> None:
        """Delete a LivePatch and wait until it and everything that was asked of nodes is gone."""
        self.api.delete(f"{self.lps}/{name}")
        items = f"{self.lps}?fieldSelector=metadata.name={name}"
        self.wait(lambda: not self.api.get(items)["items"], "the LivePatch is gone")
        self.wait(lambda: not self.node_patches(), "no node has work left")

    def reset(self, name: str) -> None:
        """Forget a LivePatch and all work while no operator runs; nobody reverts anything."""
        self.api.patch(f"{self.lps}/{name}", {"metadata": {"finalizers": []}})
        self.api.delete(f"{self.lps}/{name}")
        for node in self.node_patches():
            self.api.delete(f"{GROUP}/nodepatches/{node['metadata']['name']}")

    def node_patches(self) -> list[Json]:
        """Return the NodePatches of this fleet."""
        mine = set(self.fleet.names())
        return [one for one in self.api.get(f"{GROUP}/nodepatches")["items"] if one["metadata"]["name"] in mine]

    def check(self, name: str) -> None:
        """Compare every NodePatch with the pods.

        Raises:
            BenchFailedError: a pod has no item or two, an item has another node, or its agent has not said Applied.
        """
        pods = self.api.get(f"/api/v1/namespaces/{self.fleet.namespace}/pods")["items"]
        wanted = {pod["metadata"]["uid"]: (pod["spec"]["nodeName"], _container_id(pod, "app")) for pod in pods}
        found: dict[str, tuple[str, str]] = {}
        for node in self.node_patches():
            answers = {(one["id"], one["version"]): one["phase"] for one in node["status"]["items"]}
            for item in node["spec"]["items"]:
                if answers.get((item["id"], item["version"])) != "Applied" or item["pod"]["uid"] in found:
                    raise BenchFailedError(f"{item['pod']['name']} on {node['metadata']['name']}: {item} {answers}")
                found[item["pod"]["uid"]] = (node["metadata"]["name"], item["containers"][0]["id"])
        if found != wanted:
            wrong = [uid for uid in wanted.keys() | found.keys() if wanted.get(uid) != found.get(uid)]
            raise BenchFailedError(f"{name}: {len(wrong)} pods are not as they should be: {wrong[:5]}")

    def lateness(self) -> dict[str, float]:
        """Return how late the agents' event loops were: the worst mean and the worst moment of any process."""
        logs = [file.read_text() for file in self.folder.glob("agents-*.log")]
        said = [json.loads(line) for text in logs for line in text.splitlines() if line.startswith('{"mean"')]
        return {key: round(max(one[key] for one in said), 3) for key in ("mean", "max")}

    def wait(self, check: Callable[[], bool], what: str) -> None:
        """Poll until check() is true.

        Raises:
            BenchFailedError: that took longer than the patience.
        """
        deadline = time.monotonic() + self.patience
        while not _holds(check):
            if time.monotonic() > deadline:
                raise BenchFailedError(f"not within {self.patience:.0f} s: {what}; logs are in {self.folder}")
            time.sleep(POLL_SECONDS)


def _holds(check: Callable[[], bool]) -> bool:
    """Return whether something is so; an API server that is too busy to answer in time is asked again."""
    try:
        return check()
    except OSError:
        return False


def _container_id(pod: Json, name: str) -> str:
    one = next(one for one in pod["status"]["containerStatuses"] if one["name"] == name)
    found: str = one["containerID"]
    return found.removeprefix("containerd://")
