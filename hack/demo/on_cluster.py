"""The demo on three nodes: everything a user would do, with kubectl and helm."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from hack.cluster.layout import State
from hack.demo import bundle, observable
from hack.demo.kubernetes import Json, Kubectl
from hack.demo.load import Load
from hack.demo.progress import follow
from hack.demo.result import Identity, Result, Server, Timeline
from hack.images.build import EXPORT
from hack.tools import REPOSITORY, run, step

NAMESPACE, SYSTEM = "shop", "podgraft-system"
EXAMPLE = REPOSITORY / "examples" / "redis"
WAIT = "240s"


@dataclass(frozen=True)
class Pauses:
    """Seconds of plain load to compare with: before the patch, while it is in, after it has been reverted."""

    before: float = 15.0
    patched: float = 10.0
    after: float = 8.0


@dataclass(frozen=True)
class Pods:
    """The servers of the demo; kubectl is bound to their namespace."""

    kubectl: Kubectl

    def describe(self) -> list[Json]:
        """Return the pods that are not on their way out, by name."""
        pods = self.kubectl.json("get", "pods", "--selector=app=redis")["items"]
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return sorted(alive, key=lambda pod: str(pod["metadata"]["name"]))

    def identities(self) -> dict[str, tuple[str, Identity]]:
        """Return node and identity of each server by the pod's name."""
        found = {}
        for pod in self.describe():
            name = pod["metadata"]["name"]
            status = next(one for one in pod["status"]["containerStatuses"] if one["name"] == "redis")
            stat = self.kubectl.run("exec", name, "--container=redis", "--", "cat", "/proc/1/stat").decode()
            started = int(stat.rpartition(")")[2].split()[19])
            found[name] = (pod["spec"]["nodeName"], Identity(status["containerID"], status["restartCount"], started))
        return found

    def answers(self) -> list[str]:
        """Return what each server says about the broken value."""
        return [observable.answer(self._client(pod["metadata"]["name"])) for pod in self.describe()]

    def _client(self, pod: str) -> observable.Client:
        words = ("exec", "--stdin", pod, "--container=redis", "--", "redis-cli")
        return lambda arguments, stdin: self.kubectl.run(*words, *arguments, stdin=stdin).decode()

    def load(self, pod: str) -> Load:
        """Fetch what the load generator of a pod has recorded up to now."""
        records, summary = (
            self.kubectl.run("exec", pod, "--container=load", "--", "cat", f"/load/{file}")
            for file in ("records.bin", "summary.json")
        )
        return Load.read(records, summary.decode())


def install(kubeconfig: Path, *more: str) -> None:
    """Install the chart with the images that were just built and the demo's key; `more` are further options of helm."""
    images = json.loads((EXPORT / "images.json").read_text())
    values = [
        f"--set={part}.image.repository={images[name]['repository']},{part}.image.tag={images[name]['tag']}"
        for part, name in (("operator", "podgraft-operator"), ("agent", "podgraft-agent"))
    ]
    chart = REPOSITORY / "charts" / "podgraft"
    with step("helm upgrade --install podgraft"):
        run(
            "helm", f"--kubeconfig={kubeconfig}", "upgrade", "--install", "podgraft", chart, f"--namespace={SYSTEM}",
            "--create-namespace", "--wait", f"--timeout={WAIT}", *values,
            f"--set-file=trust.keys[0]={bundle.public_key()}", *more,
        )  # fmt: skip


def deploy(kubectl: Kubectl) -> None:
    """Start three fresh Redis pods with their load."""
    with step("three Redis pods on three nodes, each with its load generator"):
        # What an earlier run left in a cluster that was kept.
        kubectl.run("delete", "namespace", NAMESPACE, "--ignore-not-found", f"--timeout={WAIT}")
        kubectl.run("apply", "-f", EXAMPLE / "deployment.yaml")
        kubectl.run("rollout", "status", "deployment/redis", f"--timeout={WAIT}")


def play(console: Console, pauses: Pauses) -> Result:
    """Patch and revert the pods while their clients go on; the cluster, the chart and the images are there."""
    kubectl = Kubectl(State.default().admin, NAMESPACE)
    pods = Pods(kubectl)
    name = bundle.NAME
    start = time.time()
    before, answers = pods.identities(), {"before": pods.answers()}
    _show(console, "Before", answers["before"])
    kubectl.run("create", "configmap", name, f"--from-file=bundle.graft={bundle.ensure()}")
    _until(start + pauses.before)

    console.print("\n[bold]kubectl apply -f examples/redis/livepatch.yaml[/]")
    apply = time.time()
    with follow(kubectl, name, console) as seen:
        kubectl.run("apply", "-f", EXAMPLE / "livepatch.yaml")
        kubectl.run("wait", "--for=condition=Ready", f"livepatch/{name}", f"--timeout={WAIT}")
    applied = time.time()
    console.print(kubectl.run("get", "livepatch").decode().rstrip(), highlight=False)
    patched, threads, held = seen.patched, seen.threads, seen.longest_hold_us
    answers["patched"] = pods.answers()
    _show(console, "Patched", answers["patched"])
    _until(applied + pauses.patched)

    console.print(f"\n[bold]kubectl delete livepatch {name}[/]")
    delete = time.time()
    with follow(kubectl, name, console) as seen:
        kubectl.run("delete", "livepatch", name, f"--timeout={WAIT}")
    reverted = time.time()
    answers["reverted"] = pods.answers()
    _show(console, "Reverted", answers["reverted"])
    _until(reverted + pauses.after)
    end = time.time()
    return Result(
        timeline=Timeline(start, apply, applied, delete, reverted, end),
        servers=_servers(pods, before),
        patched=patched,
        threads_total=_part(threads, 1),
        threads_migrated=_part(threads, 0),
        longest_hold_us=max(held, seen.longest_hold_us),
        answers=answers,
    )


def _show(console: Console, phase: str, answers: list[str]) -> None:
    said = " | ".join(sorted(set(answers)))
    console.print(f"[bold]{phase}[/]: PFCOUNT of a broken value on {len(answers)} servers: {said}", highlight=False)


def _servers(pods: Pods, before: dict[str, tuple[str, Identity]]) -> list[Server]:
    after = pods.identities()
    gone = Identity("gone", 0, 0)
    return [
        Server(name, node, identity, after.get(name, (node, gone))[1], pods.load(name))
        for name, (node, identity) in before.items()
    ]


def _part(counts: str, index: int) -> int:
    parts = counts.split("/")
    return int(parts[index]) if len(parts) == 2 else 0


def _until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))
