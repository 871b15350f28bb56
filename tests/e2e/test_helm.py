"""The chart is upgraded, rolled back and uninstalled while patches are in place and clients go on."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.cluster import kind
from hack.cluster.layout import NODES
from hack.demo import on_cluster
from hack.demo.kubernetes import Kubectl
from hack.fleet.ledger import Ledger
from hack.fleet.shop import PATCH, Server, Shop
from hack.fleet.system import System
from hack.fleet.waiting import until
from hack.tools import ToolFailedError, run

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(kind.is_usable(), reason="looks at processes of machines that are made from namespaces"),
]
RUNS_OF_APPLY = re.compile(r'podgraft_engine_runs_total\{.*op="apply"')


@pytest.fixture(scope="module")
def shop(kubectl: Kubectl) -> Iterator[Shop]:
    on_cluster.install(kubectl.kubeconfig)
    shop = Shop(Kubectl(kubectl.kubeconfig, "helm"))
    shop.close()
    shop.open()
    yield shop
    on_cluster.install(kubectl.kubeconfig)
    shop.close()


@pytest.fixture
def patched(shop: Shop, kubeconfig: Path) -> dict[str, Server]:
    """Three patched pods, by the chart as it is by default; returns their servers."""
    on_cluster.install(kubeconfig)
    shop.patch()
    until("a whole rollout", lambda: is_done(shop))
    return shop.servers()


@pytest.fixture(autouse=True)
def clients(shop: Shop) -> Iterator[None]:
    """Afterwards no client of a server that was there before, and still is, has met an error."""
    ledger, before = Ledger.from_now(), shop.servers()
    yield
    time.sleep(0.5)  # generators write five times a second
    ledger.collect()
    stayed = before.keys() & shop.servers().keys()
    assert {name: due for name, due in ledger.failures.items() if name in stayed} == {}
    assert ledger.wrong == 0
    assert ledger.requests > 0


def is_done(shop: Shop, pods: int = 3) -> bool:
    return shop.is_ready() and shop.patched() == f"{pods}/{pods}" and set(shop.generations().values()) == {1}


def helm(kubeconfig: Path, *words: str) -> None:
    run("helm", f"--kubeconfig={kubeconfig}", *words, f"--namespace={on_cluster.SYSTEM}", "--wait", "--timeout=300s")


def revision(kubeconfig: Path) -> int:
    history = run("helm", f"--kubeconfig={kubeconfig}", "history", "podgraft", f"--namespace={on_cluster.SYSTEM}")
    return int(history.strip().splitlines()[-1].split()[0])


def test_upgrade_and_rollback(shop: Shop, patched: dict[str, Server], kubeconfig: Path) -> None:
    """`helm upgrade` and `helm rollback` replace operator and agents: what is patched stays, new pods get it."""
    system = System(kubeconfig)
    old, before = system.process("operator"), revision(kubeconfig)
    on_cluster.install(kubeconfig, "--set=agent.scanSeconds=4,operator.agentSeconds=30")
    until("a new operator", lambda: system.is_whole(len(NODES)) and system.process("operator") != old)
    assert shop.servers() == patched
    shop.kubectl.run("scale", "deployment/redis", "--replicas=4")
    until("the patch in the new pod", lambda: is_done(shop, 4), 240)
    helm(kubeconfig, "rollback", "podgraft", str(before))
    shop.kubectl.run("scale", "deployment/redis", "--replicas=5")
    until("the patch in the new pod", lambda: is_done(shop, 5), 240)
    servers = shop.servers()
    assert {name: servers.get(name) for name in patched} == patched
    shop.kubectl.run("scale", "deployment/redis", "--replicas=3")
    until("three servers", lambda: len(shop.servers()) == 3)
    until("a whole rollout", lambda: is_done(shop))


def test_agents_are_upgraded(shop: Shop, kubeconfig: Path) -> None:
    """New agents in the middle of a rollout adopt what is patched without touching it, and go on with the rest."""
    system, strategy = System(kubeconfig), {"maxParallel": 1, "steps": [{"pods": 2}, {"pause": {}}]}
    shop.unpatch()
    shop.patch(strategy=strategy)
    until("two patched servers", lambda: sorted(shop.generations().values()) == [0, 1, 1])
    servers, running = shop.servers(), shop.generations()
    old = agents(system, servers)
    on_cluster.install(kubeconfig, "--set=agent.scanSeconds=3")
    until(
        "new agents",
        lambda: not set(agents(system, servers).values()) & set(old.values()) and system.is_whole(len(NODES)),
    )
    nodes = {servers[name].node for name, found in running.items() if found == 1}
    until("the word of the new agents", lambda: all('phase="Applied"} 1.0' in metrics(system, node) for node in nodes))
    assert not [line for node in nodes for line in metrics(system, node).splitlines() if RUNS_OF_APPLY.match(line)]
    assert (shop.servers(), shop.generations()) == (servers, running)
    shop.kubectl.run("annotate", "livepatch", PATCH, "podgraft.dev/resumeRequestedAt=now")
    until("a whole rollout", lambda: is_done(shop))
    assert shop.servers() == servers


def agents(system: System, servers: dict[str, Server]) -> dict[str, str]:
    """Return the uid of each agent's pod by its node."""
    found = {server.node: system.pod("agent", server.node) for server in servers.values()}
    return {node: pod["metadata"]["uid"] for node, pod in found.items() if pod is not None}


def metrics(system: System, node: str) -> str:
    """Return the metrics of the agent of a node."""
    pod = system.pod("agent", node)
    name = pod["metadata"]["name"] if pod is not None else ""
    path = f"/api/v1/namespaces/{on_cluster.SYSTEM}/pods/{name}:8082/proxy/metrics"
    return system.kubectl.run("get", "--raw", path).decode()


def test_uninstall_keeps(shop: Shop, patched: dict[str, Server], kubeconfig: Path) -> None:
    """With uninstall.patches=Keep all goes but the patches; the next installation takes them over, and can revert."""
    helm(kubeconfig, "uninstall", "podgraft")
    system = System(kubeconfig)
    until("nothing of ours that runs", lambda: not system.kubectl.json("get", "pods")["items"])
    left = shop.kubectl.json("get", "livepatch", PATCH)["metadata"]
    assert "finalizers" not in left
    assert set(shop.generations().values()) == {1}
    on_cluster.install(kubeconfig)
    until("a whole rollout", lambda: is_done(shop))
    assert shop.kubectl.json("get", "livepatch", PATCH)["metadata"]["uid"] == left["uid"]
    assert shop.servers() == patched
    shop.unpatch()
    until("old code everywhere", lambda: set(shop.generations().values()) == {0})


def test_uninstall_reverts(shop: Shop, patched: dict[str, Server], kubeconfig: Path) -> None:
    """With uninstall.patches=Revert every LivePatch is deleted and reverted before operator and agents go."""
    on_cluster.install(kubeconfig, "--set=uninstall.patches=Revert")
    helm(kubeconfig, "uninstall", "podgraft")
    assert set(shop.generations().values()) == {0}
    assert shop.kubectl.json("get", "livepatches")["items"] == []
    assert shop.servers() == patched


def test_uninstall_with_nothing_to_revert_with(shop: Shop, kubeconfig: Path) -> None:
    """With uninstall.patches=Revert and no agents the release stays, and goes when the agents are back."""
    system = System(kubeconfig)
    on_cluster.install(kubeconfig, "--set=uninstall.patches=Revert,uninstall.seconds=40,operator.agentSeconds=10")
    shop.patch()
    until("a whole rollout", lambda: is_done(shop))
    # No node has this label: the agents go, and nobody is left who reverts.
    select = '{"spec": {"template": {"spec": {"nodeSelector": {"nowhere": "yes"}}}}}'
    system.kubectl.run("patch", "daemonset", "podgraft-agent", "-p", select)
    until("no agents", lambda: system.pod("agent") is None)
    with pytest.raises(ToolFailedError):
        helm(kubeconfig, "uninstall", "podgraft")
    log = system.kubectl.run("logs", "job/podgraft-uninstall").decode()
    assert f"pod {shop.kubectl.namespace}/redis-" in log
    assert shop.kubectl.json("get", "livepatches")["items"] == []
    assert system.pod("operator") is not None
    assert set(shop.generations().values()) == {1}
    system.kubectl.run("rollout", "undo", "daemonset/podgraft-agent")
    until("old code everywhere", lambda: set(shop.generations().values()) == {0}, 240)
    helm(kubeconfig, "uninstall", "podgraft")
    assert system.pod("operator") is None
