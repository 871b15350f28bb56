"""What is promised beyond one patch: rollouts, every kind of container, security, observability, on real nodes."""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
import requests

from hack.cluster import disrupt, kind
from hack.cluster.layout import NODES, State
from hack.cluster.node import static_pods
from hack.demo import on_cluster
from hack.demo.kubernetes import Json, Kubectl
from hack.fleet import bundles
from hack.fleet.shop import PATCH, Shop
from hack.fleet.system import System
from hack.fleet.waiting import until
from hack.tools import REPOSITORY, ToolFailedError

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(kind.is_usable(), reason="looks at processes of machines that are made from namespaces"),
]
IMAGE = "localhost/podgraft-demo-redis:7.0.15"
OTHERS = {"matchLabels": {"app": "other"}}
PLUGIN = REPOSITORY / ".venv/bin/kubectl-podgraft"


@pytest.fixture(scope="module")
def system(kubectl: Kubectl) -> System:
    install(kubectl.kubeconfig)
    return System(kubectl.kubeconfig)


def install(kubeconfig: Path, *more: str) -> None:
    on_cluster.install(kubeconfig, "--set=operator.agentSeconds=15", *more)


@pytest.fixture(scope="module")
def shop(system: System) -> Iterator[Shop]:
    shop = Shop(Kubectl(system.kubeconfig, "promises"))
    shop.close()
    shop.open()
    yield shop
    shop.close()


@pytest.fixture
def clean(shop: Shop) -> Iterator[None]:
    """Afterwards there is no LivePatch, and old code runs everywhere."""
    yield
    shop.unpatch()
    until("old code everywhere", lambda: set(shop.generations().values()) == {0})


def reason(shop: Shop) -> str:
    """Return the reason of the condition that is true for the LivePatch as it is now."""
    found = shop.kubectl.json("get", "livepatch", PATCH)
    now = [one for one in (found.get("status") or {}).get("conditions", ()) if one["status"] == "True"]
    return next((str(one["reason"]) for one in now if one["observedGeneration"] == found["metadata"]["generation"]), "")


def stands_at(shop: Shop, wanted: str) -> bool:
    """Tell whether a reason is the present one; else the error says which one is."""
    if reason(shop) != wanted:
        raise ToolFailedError(f"reason {reason(shop)!r}, not {wanted}")
    return True


def redis(name: str, port: int) -> Json:
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    return {"name": name, "image": IMAGE, "imagePullPolicy": "Never", "command": command}


def create_pod(shop: Shop, name: str, **spec: object) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "other"}},
        "spec": {"terminationGracePeriodSeconds": 1} | spec,
    }
    shop.kubectl.run("apply", "-f", "-", stdin=json.dumps(pod).encode())
    shop.kubectl.run("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s")


def processes(shop: Shop, pod: str) -> dict[str, str]:
    """Return container -> phase of the processes that agents report for a pod."""
    found = shop.kubectl.json("get", "nodepatches")["items"]
    items = {one["id"]: one["pod"]["name"] for patch in found for one in patch["spec"]["items"]}
    reports = [one for patch in found for one in (patch.get("status") or {}).get("items", ())]
    mine = [report for report in reports if items.get(report["id"]) == pod]
    return {one["container"]: one["phase"] for report in mine for one in report.get("processes", ())}


@pytest.mark.usefixtures("clean")
def test_steps_pause_resume_and_rollback(shop: Shop) -> None:
    """A step, a pause until somebody resumes, another bundle, and back to the one before without steps."""
    strategy = {"maxParallel": 1, "steps": [{"pods": 1}, {"pause": {}}]}
    shop.patch(strategy=strategy)
    until("the pause", lambda: stands_at(shop, "StepPaused"))
    assert sorted(shop.generations().values()) == [0, 0, 1]
    shop.kubectl.run("annotate", "livepatch", PATCH, "podgraft.dev/resumeRequestedAt=now")
    until("a whole rollout", lambda: shop.is_ready() and set(shop.generations().values()) == {1})
    shop.patch(bundles.SECOND, strategy=strategy)
    until("the pause of the second", lambda: stands_at(shop, "StepPaused"))
    assert sorted(shop.generations().values()) == [1, 1, 2]
    shop.patch(bundles.FIRST, strategy=strategy)
    until("the rollback", lambda: shop.is_ready() and set(shop.generations().values()) == {1})


@pytest.mark.usefixtures("clean")
def test_another_bundle_in_the_middle(shop: Shop) -> None:
    """Another bundle in the middle of a rollout: the pod with the abandoned one is the first to get the new one."""
    strategy = {"maxParallel": 1, "steps": [{"pods": 1}, {"pause": {}}]}
    shop.patch(strategy=strategy)
    until("the pause", lambda: stands_at(shop, "StepPaused"))
    before = shop.generations()
    assert sorted(before.values()) == [0, 0, 1]
    shop.patch(bundles.SECOND, strategy=strategy)
    until("the pause of the second", lambda: stands_at(shop, "StepPaused"))
    assert shop.generations() == {name: 2 * found for name, found in before.items()}
    shop.patch(bundles.SECOND)
    until("a whole rollout", lambda: shop.is_ready() and set(shop.generations().values()) == {2})


@pytest.mark.usefixtures("clean")
def test_a_failed_gate_reverts(shop: Shop) -> None:
    """A server that dies after its patch shuts the gate: with onFailure: Revert everything gets its old code."""
    strategy = {
        "maxParallel": 1,
        "steps": [{"pods": 1}, {"pause": {}}],
        "onFailure": "Revert",
        # Or the pod, which is not ready without its server, would be the first to shut a gate.
        "health": {"ready": False, "maxRestarts": 0},
    }
    shop.patch(strategy=strategy)
    until("the pause", lambda: stands_at(shop, "StepPaused"))
    patched = next(name for name, found in shop.generations().items() if found == 1)
    disrupt.kill(shop.servers()[patched].pid)
    until("the failure", lambda: stands_at(shop, "TooManyRestarts"))
    until("old code everywhere", lambda: len(shop.servers()) == 3 and set(shop.generations().values()) == {0})


@pytest.mark.usefixtures("clean")
def test_new_and_restarted_containers_get_the_patch(shop: Shop) -> None:
    """A container that is started again, a pod that is made anew and one more pod are patched by themselves."""
    shop.patch()
    until("a whole rollout", lambda: shop.is_ready() and set(shop.generations().values()) == {1})
    first, second, _ = shop.servers().values()
    disrupt.kill(first.pid)
    shop.kubectl.run("delete", "pod", second.pod, "--wait=false")
    shop.kubectl.run("scale", "deployment/redis", "--replicas=4")
    until("four servers", lambda: len(shop.servers()) == 4 and shop.servers().get(first.pod) not in (None, first))
    until("all patched", lambda: shop.patched() == "4/4" and list(shop.generations().values()) == [1] * 4, 240)
    shop.kubectl.run("scale", "deployment/redis", "--replicas=3")


@pytest.mark.usefixtures("clean")
def test_every_kind_of_container(shop: Shop) -> None:
    """Two containers of a pod, a sidecar, an ephemeral container, and a pod that shares the node's process ids."""
    first = redis("first", 6383) | {"command": ["true"]}
    sidecar = redis("sidecar", 6381) | {"restartPolicy": "Always"}
    create_pod(shop, "many", containers=[redis("one", 6379), redis("two", 6380)], initContainers=[first, sidecar])
    create_pod(shop, "host-pid", containers=[redis("one", 6379)], hostPID=True)
    late = {"spec": {"ephemeralContainers": [redis("late", 6382)]}}
    shop.kubectl.run("patch", "pod", "many", "--subresource=ephemeralcontainers", "-p", json.dumps(late))
    shop.patch(selector=OTHERS, containers=[])
    all_four = dict.fromkeys(("one", "two", "sidecar", "late"), "Applied")
    until("four patched processes", lambda: processes(shop, "many") == all_four)
    until("the pod with the node's process ids", lambda: processes(shop, "host-pid") == {"one": "Applied"})
    shop.unpatch()
    shop.kubectl.run("delete", "pod", "many", "host-pid")


@pytest.mark.usefixtures("clean")
def test_static_pods(shop: Shop) -> None:
    """A pod that the kubelet of a node has started by itself from a file is patched by its mirror in the API server."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "static", "namespace": shop.kubectl.namespace, "labels": {"app": "other"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [redis("one", 6379)]},
    }
    file = static_pods(State.default(), 1) / "static.json"
    file.write_text(json.dumps(pod))
    try:
        shop.patch(selector=OTHERS, containers=[])
        until("the static pod", lambda: processes(shop, "static-node1") == {"one": "Applied"})
        shop.unpatch()
    finally:
        file.unlink()


@pytest.mark.usefixtures("clean")
def test_another_build_is_not_applicable(shop: Shop) -> None:
    """A pod without a process of the patched build is reported as NotApplicable, and is no failure."""
    create_pod(shop, "another", containers=[redis("one", 6379) | {"command": ["sleep", "3600"]}])
    shop.patch(selector=OTHERS, containers=[])
    until("the verdict", lambda: shop.is_ready() and reason(shop) == "NotApplicable")
    assert shop.status()["pods"]["notApplicable"] == 1
    shop.unpatch()
    shop.kubectl.run("delete", "pod", "another")


@pytest.mark.usefixtures("clean")
def test_a_pod_with_a_seccomp_profile(shop: Shop, system: System) -> None:
    """Refused with its reason as the chart is by default; with agent.readSeccompFilters it is patched."""
    profile = {"seccompProfile": {"type": "RuntimeDefault"}}
    create_pod(shop, "filtered", containers=[redis("one", 6379)], securityContext=profile)
    shop.patch(selector=OTHERS, containers=[])
    until("the refusal", lambda: stands_at(shop, "SeccompForbids"))
    try:
        install(system.kubeconfig, "--set=agent.readSeccompFilters=true")
        until("a patched process", lambda: processes(shop, "filtered") == {"one": "Applied"})
        shop.unpatch()
    finally:
        install(system.kubeconfig)
    shop.kubectl.run("delete", "pod", "filtered")


def test_what_an_agent_may_not_do(system: System, shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """The token of a running agent is refused everything but its own NodePatch and the bundles; each try is printed."""
    shop.patch()
    until("a whole rollout", lambda: shop.is_ready() and set(shop.generations().values()) == {1})
    mine, other = (server.node for server in list(shop.servers().values())[:2])
    pid = system.process("agent", mine)
    # /var/run is a link to /run there, and an absolute one would lead to the host's.
    token = Path(f"/proc/{pid}/root/run/secrets/kubernetes.io/serviceaccount/token").read_text()
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["kubernetes.io"]["node"]["name"] == mine
    patches, shop_path = "/apis/podgraft.dev/v1alpha1/nodepatches", f"/api/v1/namespaces/{shop.kubectl.namespace}"
    live_patch = f"/apis/podgraft.dev/v1alpha1/namespaces/{shop.kubectl.namespace}/livepatches/{PATCH}"
    status: Json = {"status": {"agentVersion": "0.1.0"}}
    pod = next(iter(shop.servers()))
    attempts: list[tuple[str, str, Json]] = [
        ("PATCH", f"{patches}/{other}/status", status),
        ("PATCH", f"{patches}/{mine}", {"spec": {"items": []}}),
        ("DELETE", f"{patches}/{other}", {}),
        ("PATCH", live_patch, {"spec": {"paused": True}}),
        ("GET", "/api/v1/secrets", {}),
        ("GET", "/api/v1/pods", {}),
        ("GET", "/api/v1/nodes", {}),
        ("GET", f"{shop_path}/configmaps", {}),
        ("POST", f"{shop_path}/pods/{pod}/exec?command=true", {}),
        ("POST", f"{shop_path}/serviceaccounts", {"metadata": {"name": "x"}}),
    ]
    assert ask(system, token, "PATCH", f"{patches}/{mine}/status", status)[0] == HTTPStatus.OK
    for method, path, body in attempts:
        code, said = ask(system, token, method, path, body)
        with capsys.disabled():
            sys.stdout.write(f"\n  {code} {method} {path}: {said[:110]}")
        assert code == HTTPStatus.FORBIDDEN
        assert ("of its own node only" if path.endswith("/status") else "forbidden") in said
    shop.unpatch()


def ask(system: System, token: str, method: str, path: str, body: Json) -> tuple[int, str]:
    """Ask the API server with a token as the only credential; return status code and message."""
    cluster = json.loads(system.kubeconfig.read_text())["clusters"][0]["cluster"]
    kind = "merge-patch+json" if method == "PATCH" else "json"
    answer = requests.request(
        method,
        cluster["server"] + path,
        data=json.dumps(body) if body else None,
        headers={"Authorization": f"Bearer {token}", "Content-Type": f"application/{kind}"},
        verify=cluster["certificate-authority"],
        timeout=20,
    )
    return answer.status_code, str(answer.json().get("message", ""))


@pytest.mark.usefixtures("clean")
def test_it_can_be_seen(shop: Shop, system: System) -> None:
    """Metrics of operator and agents, Events, and the plugin's status and why tell of the patched pods."""
    shop.patch()
    until("a whole rollout", lambda: shop.is_ready() and set(shop.generations().values()) == {1})
    server = next(iter(shop.servers().values()))
    pods = system.pod("operator"), system.pod("agent", server.node)
    seen = []
    for pod in pods:
        assert pod is not None
        path = f"/api/v1/namespaces/{on_cluster.SYSTEM}/pods/{pod['metadata']['name']}:8082/proxy/metrics"
        seen.append(system.kubectl.run("get", "--raw", path).decode())
    assert "podgraft_" in seen[0]
    assert 'podgraft_agent_processes{phase="Applied"} 1.0' in seen[1]
    reasons = {one["reason"] for one in shop.kubectl.json("get", "events")["items"]}
    assert {"RolloutBegan", "Patched"} <= reasons
    for words in (("status",), ("why", server.pod)):
        shown = subprocess.run(
            [PLUGIN, *words, "--namespace", shop.kubectl.namespace], check=False, capture_output=True, text=True,
            env={"KUBECONFIG": str(system.kubeconfig), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        )  # fmt: skip
        assert server.pod in shown.stdout, shown.stderr


def test_a_namespace_goes_without_agents(shop: Shop, system: System) -> None:
    """With a patch in place and all agents gone, the deletion of the namespace does not hang on our finalizer."""
    shop.patch()
    until("a whole rollout", lambda: shop.is_ready() and set(shop.generations().values()) == {1})
    nowhere = '{"spec": {"template": {"spec": {"nodeSelector": {"nowhere": "yes"}}}}}'
    system.kubectl.run("patch", "daemonset", "podgraft-agent", "-p", nowhere)
    try:
        until("no agents", lambda: system.pod("agent") is None)
        began = time.monotonic()
        shop.close()
        assert time.monotonic() - began < 120
    finally:
        system.kubectl.run("rollout", "undo", "daemonset/podgraft-agent")
        until("operator and agents", lambda: system.is_whole(len(NODES)))
