"""One thread held inside a replaced function keeps a transition open: what happens meanwhile, and what is told."""

import difflib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.demo import bundle, on_cluster
from hack.demo.kubernetes import Json, Kubectl
from hack.demo.on_cluster import Pods
from hack.fleet.system import System
from hack.fleet.waiting import until
from hack.sources import redis
from hack.tools import cache

pytestmark = pytest.mark.cluster
NAME = "redis-call"
SLEEP_SECONDS = 25

LIVE_PATCH = f"""
apiVersion: podgraft.dev/v1alpha1
kind: LivePatch
metadata: {{name: {NAME}, namespace: {on_cluster.NAMESPACE}}}
spec:
  bundle: {{configMap: {{name: {NAME}, key: bundle.graft}}}}
  selector: {{matchLabels: {{app: redis}}}}
  containers: [redis]
  strategy: {{maxParallel: %s, threadDeadlineSeconds: 3}}
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


@pytest.fixture(scope="module")
def system(shop: Kubectl) -> System:
    return System(shop.kubeconfig)


@pytest.fixture
def held(shop: Kubectl, request: pytest.FixtureRequest) -> Iterator[str]:
    """Apply the LivePatch while one pod's main thread sleeps inside DEBUG; yield the pod's name, delete the patch.

    It is the pod that is patched first. The parameter is maxParallel, all pods if there is none.
    """
    pod = next(one["metadata"]["name"] for one in Pods(shop).describe() if not one["metadata"].get("deletionTimestamp"))
    before = Pods(shop).identities()
    words = ("exec", pod, "--container=redis", "--", "redis-cli", "DEBUG", "SLEEP", str(SLEEP_SECONDS))
    sleeper = subprocess.Popen(shop._words(words), stdout=subprocess.PIPE)
    time.sleep(1)
    shop.run("apply", "-f", "-", stdin=(LIVE_PATCH % getattr(request, "param", "100%")).encode())
    try:
        yield pod
        shop.run("wait", "--for=condition=Ready", f"livepatch/{NAME}", "--timeout=90s")
        done = summary(shop)
        assert (done["patched"], done["threads"]) == ("3/3", "21/21")
        assert sleeper.communicate(timeout=60)[0].strip() == b"OK"
    finally:
        shop.run("delete", "livepatch", NAME, "--timeout=120s")
    after = Pods(shop).identities()
    assert after == before, "a server was restarted"


def live_patch(kubectl: Kubectl) -> Json:
    return kubectl.json("get", "livepatch", NAME)


def summary(kubectl: Kubectl) -> Json:
    found: Json = live_patch(kubectl)["status"]["summary"]
    return found


def begun(kubectl: Kubectl) -> set[str]:
    """Return the pods that agents have been asked about."""
    items = (item for one in kubectl.json("get", "nodepatches")["items"] for item in one["spec"]["items"])
    return {item["pod"]["name"] for item in items}


def edit(kubectl: Kubectl, spec: str) -> None:
    kubectl.run("patch", "livepatch", NAME, "--type=merge", "-p", f'{{"spec": {spec}}}')


def straggler(kubectl: Kubectl, pod: str) -> Json | None:
    """Return the straggler that the status names in a pod."""
    named = live_patch(kubectl).get("status", {}).get("stragglers") or []
    return next((one for one in named if one["pod"] == pod), None)


def node_of(kubectl: Kubectl, pod: str) -> str:
    return str(kubectl.json("get", "pod", pod)["spec"]["nodeName"])


def test_a_straggler_is_named_while_the_others_migrate(shop: Kubectl, held: str) -> None:
    """The status says who, where and in which call; the two other pods are done, and six of the seven threads."""
    one = until("a straggler", lambda: straggler(shop, held), 60)
    assert one is not None
    assert one["function"] == "call"
    assert one["name"] == "redis-server"
    assert one["syscall"] in {"nanosleep", "clock_nanosleep", "restart_syscall"}
    assert one["tid"] > 0
    until("20 of 21 threads", lambda: summary(shop)["threads"] == "20/21", 60)
    shown = shop.run("describe", "livepatch", NAME).decode()
    assert "redis-server" in shown


@pytest.mark.parametrize("held", [1], indirect=True, ids=["maxParallel: 1"])
def test_one_pod_at_a_time_and_pause(shop: Kubectl, held: str) -> None:
    """With maxParallel: 1 a held pod keeps the others waiting; paused, it is finished, and they wait until resumed."""
    until("a straggler", lambda: straggler(shop, held), 60)
    assert begun(shop) == {held}
    edit(shop, '{"paused": true}')
    until("the held pod done", lambda: summary(shop)["patched"] == "1/3", 60)
    shop.run("wait", "--for=jsonpath={.status.conditions[?(@.status=='True')].reason}=Paused", f"livepatch/{NAME}")
    assert begun(shop) == {held}
    edit(shop, '{"paused": false}')


@pytest.mark.parametrize("held", [1], indirect=True, ids=["maxParallel: 1"])
def test_the_strategy_is_changed_in_the_middle(shop: Kubectl, held: str) -> None:
    """A larger maxParallel lets the other pods begin while the first is still held."""
    until("a straggler", lambda: straggler(shop, held), 60)
    assert begun(shop) == {held}
    edit(shop, '{"strategy": {"maxParallel": 3}}')
    until("the two others", lambda: summary(shop)["patched"] == "2/3", 60)
    assert straggler(shop, held)


def test_the_agent_is_deleted_in_the_middle(shop: Kubectl, system: System, held: str) -> None:
    """The next agent of the node reads the process and goes on."""
    until("a straggler", lambda: straggler(shop, held), 60)
    replace(system, "agent", node_of(shop, held))


def test_the_operator_is_deleted_in_the_middle(shop: Kubectl, system: System, held: str) -> None:
    """The next operator finds everything in the resources."""
    until("a straggler", lambda: straggler(shop, held), 60)
    replace(system, "operator")


def replace(system: System, component: str, node: str | None = None) -> None:
    """Delete a pod of ours, and wait for the next one."""
    old = until(f"the {component}", lambda: system.pod(component, node))["metadata"]
    system.kubectl.run("delete", "pod", old["name"], "--wait=false")
    until(f"another {component}", lambda: uid(system.pod(component, node)) not in {"", old["uid"]}, 60)


def uid(pod: Json | None) -> str:
    return str(pod["metadata"]["uid"]) if pod is not None else ""
