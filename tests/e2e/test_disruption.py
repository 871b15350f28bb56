"""One thread held inside a replaced function keeps a transition open: what happens meanwhile, and what is told."""

import difflib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hack.demo import bundle, on_cluster
from hack.demo.kubernetes import Kubectl
from hack.demo.on_cluster import Pods
from hack.sources import redis
from hack.tools import cache

pytestmark = pytest.mark.cluster
NAME = "redis-call"
SLEEP_SECONDS = 25
Json = dict[str, Any]

LIVE_PATCH = f"""
apiVersion: podgraft.dev/v1alpha1
kind: LivePatch
metadata: {{name: {NAME}, namespace: {on_cluster.NAMESPACE}}}
spec:
  bundle: {{configMap: {{name: {NAME}, key: bundle.graft}}}}
  selector: {{matchLabels: {{app: redis}}}}
  containers: [redis]
  strategy: {{maxParallel: 100%, threadDeadlineSeconds: 3}}
"""


def call_patch() -> Path:
    """Make a patch of the function that calls every command, so that DEBUG SLEEP holds a thread inside it."""
    source = (redis.prepare().tree / "src" / "server.c").read_text().splitlines(keepends=True)
    start = next(i for i, line in enumerate(source) if line.startswith("void call(client *c, int flags) {"))
    extra = '    if (c->argc == 4242) serverLog(LL_WARNING, "4242 arguments");\n'
    fixed = [*source[: start + 1], extra, *source[start + 1 :]]
    patch = cache() / "test" / "call.patch"
    patch.parent.mkdir(exist_ok=True)
    patch.write_text("".join(difflib.unified_diff(source, fixed, "a/src/server.c", "b/src/server.c")))
    return patch


@pytest.fixture(scope="module")
def shop(kubectl: Kubectl) -> Iterator[Kubectl]:
    """Three Redis pods that allow DEBUG, and the bundle for them; podgraft is installed."""
    on_cluster.install(kubectl.kubeconfig)
    on_cluster.deploy(kubectl)
    allow = '[{"op": "add", "path": "/spec/template/spec/containers/0/command/-", "value": "%s"}]'
    for word in ("--enable-debug-command", "local"):
        kubectl.run("patch", "deployment/redis", "--type=json", "-p", allow % word)
    kubectl.run("rollout", "status", "deployment/redis", "--timeout=120s")
    file = bundle.build(redis.prepare(), NAME, call_patch())
    kubectl.run("create", "configmap", NAME, f"--from-file=bundle.graft={file}")
    yield kubectl
    kubectl.run("delete", "namespace", on_cluster.NAMESPACE, "--timeout=120s")


@pytest.fixture
def held(shop: Kubectl) -> Iterator[str]:
    """Apply the LivePatch while one pod's main thread sleeps inside DEBUG; yield the pod's name, delete the patch."""
    pod = next(one["metadata"]["name"] for one in Pods(shop).describe() if not one["metadata"].get("deletionTimestamp"))
    before = Pods(shop).identities()
    words = ("exec", pod, "--container=redis", "--", "redis-cli", "DEBUG", "SLEEP", str(SLEEP_SECONDS))
    sleeper = subprocess.Popen(shop._words(words), stdout=subprocess.PIPE)
    time.sleep(1)
    shop.run("apply", "-f", "-", stdin=LIVE_PATCH.encode())
    try:
        yield pod
        shop.run("wait", "--for=condition=Ready", f"livepatch/{NAME}", "--timeout=90s")
        summary = live_patch(shop)["status"]["summary"]
        assert (summary["patched"], summary["threads"]) == ("3/3", "21/21")
        assert sleeper.communicate(timeout=60)[0].strip() == b"OK"
    finally:
        shop.run("delete", "livepatch", NAME, "--timeout=120s")
    after = Pods(shop).identities()
    assert after == before, "a server was restarted"


def live_patch(kubectl: Kubectl) -> Json:
    return kubectl.json("get", "livepatch", NAME)


def until(what: str, ask: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Ask until there is an answer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.3)
    raise AssertionError(f"in {seconds} s not seen: {what}")


def straggler(kubectl: Kubectl, pod: str) -> Json | None:
    """Return the straggler that the status names in a pod."""
    named = live_patch(kubectl).get("status", {}).get("stragglers") or []
    return next((one for one in named if one["pod"] == pod), None)


def system_pod(kubectl: Kubectl, component: str, node: str | None = None) -> Json | None:
    """Return the pod of the operator, or of the agent of a node; None between an old one and a new one."""
    system = Kubectl(kubectl.kubeconfig, on_cluster.SYSTEM)
    pods = system.json("get", "pods", f"--selector=app.kubernetes.io/component={component}")["items"]
    alive = (p["metadata"] for p in pods if "deletionTimestamp" not in p["metadata"])
    nodes = {p["metadata"]["name"]: p["spec"].get("nodeName") for p in pods}
    return next((metadata for metadata in alive if node in (None, nodes[metadata["name"]])), None)


def node_of(kubectl: Kubectl, pod: str) -> str:
    return str(kubectl.json("get", "pod", pod)["spec"]["nodeName"])


def test_a_straggler_is_named_while_the_others_migrate(shop: Kubectl, held: str) -> None:
    """The status says who, where and in which call; the two other pods are done, and six of the seven threads."""
    one = until("a straggler", lambda: straggler(shop, held))
    assert one["function"] == "call"
    assert one["name"] == "redis-server"
    assert one["syscall"] in {"nanosleep", "clock_nanosleep", "restart_syscall"}
    assert one["tid"] > 0
    until("20 of 21 threads", lambda: live_patch(shop)["status"]["summary"]["threads"] == "20/21")
    shown = shop.run("describe", "livepatch", NAME).decode()
    assert "redis-server" in shown


def test_the_agent_is_deleted_in_the_middle(shop: Kubectl, held: str) -> None:
    """The next agent of the node reads the process and goes on."""
    until("a straggler", lambda: straggler(shop, held))
    node = node_of(shop, held)
    old = system_pod(shop, "agent", node)
    assert old is not None
    system = Kubectl(shop.kubeconfig, on_cluster.SYSTEM)
    system.run("delete", "pod", old["name"], "--wait=false")
    until("a new agent", lambda: (system_pod(shop, "agent", node) or old)["uid"] != old["uid"])


def test_the_operator_is_deleted_in_the_middle(shop: Kubectl, held: str) -> None:
    """The next operator finds everything in the resources."""
    until("a straggler", lambda: straggler(shop, held))
    system = Kubectl(shop.kubeconfig, on_cluster.SYSTEM)
    old = system_pod(shop, "operator")
    assert old is not None
    system.run("delete", "pod", old["name"], "--wait=false")
    until("a new operator", lambda: (system_pod(shop, "operator") or old)["uid"] != old["uid"])
