"""Programs die, cables break, clocks jump: clients notice nothing, and the state converges."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from hack.cluster import disrupt, kind, local
from hack.cluster.layout import CONTROL_PLANE, NODES, State
from hack.demo import on_cluster
from hack.demo.kubernetes import Kubectl
from hack.fleet import clocks
from hack.fleet.ledger import Ledger
from hack.fleet.shop import Server, Shop, number_of
from hack.fleet.system import System, engines
from hack.fleet.waiting import until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(kind.is_usable(), reason="breaks machines that are made from namespaces"),
]
AGENT_SECONDS = 15
# One pod, some seconds for the disruption, the others.
STAGED = {"maxParallel": 1, "threadDeadlineSeconds": 30, "steps": [{"pods": 1}, {"pause": {"seconds": 4}}]}


@pytest.fixture(scope="module")
def system(kubectl: Kubectl) -> System:
    on_cluster.install(kubectl.kubeconfig, f"--set=operator.agentSeconds={AGENT_SECONDS}")
    return System(kubectl.kubeconfig)


@pytest.fixture(scope="module")
def state() -> State:
    return State.default()


@pytest.fixture(scope="module")
def shop(system: System) -> Iterator[Shop]:
    """Three loaded Redis pods that all tests of this file share."""
    shop = Shop(Kubectl(system.kubeconfig, "steady"))
    shop.close()
    shop.open()
    yield shop
    shop.close()


@dataclass
class Clients:
    """What clients met during a test; lost: pods that the test itself has taken away."""

    ledger: Ledger
    before: dict[str, Server]
    lost: set[str] = field(default_factory=set)


@pytest.fixture
def clients(shop: Shop, system: System) -> Iterator[Clients]:
    """Afterwards: the patch is taken back, every server is the one it was, and no client has met an error."""
    until("operator and agents", lambda: system.is_whole(len(NODES)), 240)
    until("three servers", lambda: len(shop.servers()) == 3, 240)
    ledger = Ledger.from_now()
    clients = Clients(ledger, shop.servers())
    try:
        yield clients
    finally:
        until("an API server", lambda: bool(shop.pods()))
        shop.unpatch()
    until("old code everywhere", lambda: set(shop.generations().values()) == {0})
    until("no work left", lambda: not shop.kubectl.json("get", "nodepatches")["items"])
    time.sleep(0.5)  # generators write five times a second
    ledger.collect()
    stayed = {name: server for name, server in clients.before.items() if name not in clients.lost}
    assert {name: shop.servers().get(name) for name in stayed} == stayed
    assert {name: due for name, due in ledger.failures.items() if name in stayed} == {}
    assert ledger.wrong == 0
    assert ledger.requests > 0


def is_done(shop: Shop, generation: int = 1) -> bool:
    """Tell whether the LivePatch says that it is done, and the servers say so too."""
    return shop.is_ready() and shop.patched() == "3/3" and set(shop.generations().values()) == {generation}


@pytest.mark.usefixtures("clients")
def test_operator_is_killed(shop: Shop, system: System) -> None:
    """The operator gets SIGKILL in the middle of the rollout, and again in the middle of the revert."""
    shop.patch(strategy=STAGED)
    until("the first pod", lambda: shop.patched() == "1/3")
    disrupt.kill(system.process("operator"))
    until("a whole rollout", lambda: is_done(shop))
    until("the next operator", lambda: system.is_whole(len(NODES)))
    shop.kubectl.run("delete", "livepatch", "fix", "--wait=false")
    disrupt.kill(system.process("operator"))


def test_agents_are_killed(shop: Shop, system: System, clients: Clients) -> None:
    """Every agent gets SIGKILL, and its engine with it, while the engine changes a process."""
    killed: list[str] = []

    def hunt(node: str, agent: int) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            family = engines(agent)
            if family:
                time.sleep(0.25)  # Python has started by then
                for pid in (agent, *family):
                    disrupt.kill(pid)
                killed.append(node)
                return
            time.sleep(0.01)

    nodes = {server.node for server in clients.before.values()}
    hunters = [threading.Thread(target=hunt, args=(node, system.process("agent", node))) for node in nodes]
    for hunter in hunters:
        hunter.start()
    shop.patch()
    for hunter in hunters:
        hunter.join()
    assert set(killed) == nodes
    until("a whole rollout", lambda: is_done(shop))


@pytest.mark.usefixtures("clients")
def test_api_server_is_restarted(shop: Shop, state: State) -> None:
    """The API server gets SIGKILL in the middle of the rollout and is started again."""
    shop.patch(strategy=STAGED)
    until("the first pod", lambda: shop.patched() == "1/3")
    disrupt.kill(disrupt.program(state, CONTROL_PLANE, "kube-apiserver"))
    until("a whole rollout", lambda: is_done(shop), 240)


def test_network_is_cut(shop: Shop, state: State, clients: Clients) -> None:
    """A node loses every packet for a minute in the middle of the rollout; it is reported, the others are patched."""
    shop.patch(strategy=STAGED)
    until("the first pod", lambda: shop.patched() == "1/3")
    running = shop.generations()
    far = next(server for name, server in clients.before.items() if running[name] == 0)
    began = time.monotonic()
    with disrupt.cut_off(state, number_of(far.node)):
        until("the other pods", lambda: _patched_by_now(shop) == {far.pod: 0}, 50)
        until("a word about the silent node", lambda: _reason(shop) == "AgentNotAnswering", 50)
        time.sleep(max(0.0, began + 60 - time.monotonic()))
    until("a whole rollout", lambda: is_done(shop), 240)


@pytest.mark.usefixtures("clients")
def test_etcd_is_slow(shop: Shop, state: State) -> None:
    """The store, etcd, stands still for a second, again and again, for half a minute in which everything is patched."""
    etcd = disrupt.program(state, CONTROL_PLANE, "etcd")
    pulses = threading.Thread(target=disrupt.slow_down, args=(etcd, 30.0), kwargs={"still": 1.0, "between": 0.3})
    pulses.start()
    until("an applied LivePatch", lambda: shop.patch(strategy=STAGED) or True)
    pulses.join()
    until("a whole rollout", lambda: is_done(shop), 240)


def test_watches_are_told_that_the_past_is_gone(shop: Shop, system: System, state: State, clients: Clients) -> None:
    """Operator and agents sleep while etcd is compacted and the API server starts anew: 410 Gone for their versions."""
    shop.patch(strategy=STAGED)
    until("the first pod", lambda: shop.patched() == "1/3")
    resource = "/apis/podgraft.dev/v1alpha1/nodepatches"
    version = json.loads(shop.kubectl.run("get", "--raw", resource))["metadata"]["resourceVersion"]
    agents = [system.process("agent", server.node) for server in clients.before.values()]
    with disrupt.standing_still(system.process("operator"), *agents):
        for turn in range(3):
            shop.kubectl.run("annotate", "--overwrite", "livepatch", "fix", f"test/turn={turn}")
            shop.kubectl.run("annotate", "--overwrite", "nodepatch", "--all", f"test/turn={turn}")
        disrupt.compact(state)
        disrupt.kill(disrupt.program(state, CONTROL_PLANE, "kube-apiserver"))
        path = f"{resource}?watch=1&timeoutSeconds=2&resourceVersion={version}"
        until("410 Gone", lambda: b'"code":410' in shop.kubectl.run("get", "--raw", path))
    until("a whole rollout", lambda: is_done(shop), 240)


def test_node_is_gone_for_good(shop: Shop, state: State, clients: Clients) -> None:
    """A node with a patched pod loses its power and is deleted: its pod is made anew elsewhere, and patched there."""
    shop.patch()
    until("a whole rollout", lambda: is_done(shop))
    far = next(iter(clients.before.values()))
    number = number_of(far.node)
    _give_up(clients, far.node)
    local.switch_off(state, number)
    try:
        shop.kubectl.run("delete", "node", far.node)
        until("another pod", lambda: far.pod not in shop.servers() and len(shop.servers()) == 3, 240)
        until("a whole rollout", lambda: is_done(shop), 240)
        until("no work for the node", lambda: far.node not in _names(shop, "nodepatches"), 240)
    finally:
        local.switch_on(state, number)
        until("the node", lambda: far.node in _names(shop, "nodes"))


def test_node_is_rebooted(shop: Shop, state: State, clients: Clients) -> None:
    """A node with a patched pod loses its power and starts again: the pod comes back, and so does the patch."""
    shop.patch()
    until("a whole rollout", lambda: is_done(shop))
    far = next(iter(clients.before.values()))
    _give_up(clients, far.node)
    local.switch_off(state, number_of(far.node))
    local.switch_on(state, number_of(far.node))
    until("the same pod again", lambda: far.pod in shop.servers() and shop.servers()[far.pod] != far, 240)
    until("a whole rollout", lambda: is_done(shop), 240)


@pytest.mark.parametrize(("first", "then"), [("+0", "+2h"), ("+2h", "+0")], ids=["ahead", "back"])
@pytest.mark.usefixtures("clients")
def test_clocks_jump(shop: Shop, system: System, first: str, then: str) -> None:
    """The clocks of operator and agents jump by two hours in the middle of the rollout: it does not fail."""
    staged = STAGED | {"progressDeadlineSeconds": 300, "onFailure": "Revert"}
    with clocks.settable(system, first):
        shop.patch(strategy=staged)
        until("the first pod", lambda: shop.patched() == "1/3")
        clocks.set_to(then)
        until("a whole rollout", lambda: is_done(shop))
        shop.unpatch()


def _give_up(clients: Clients, node: str) -> None:
    """Expect nothing more of the pods of a node that is about to lose its power."""
    clients.lost |= {name for name, server in clients.before.items() if server.node == node}
    clients.ledger.collect()


def _patched_by_now(shop: Shop) -> dict[str, int]:
    return {name: found for name, found in shop.generations().items() if found == 0}


def _reason(shop: Shop) -> str:
    conditions = shop.status().get("conditions", ())
    return next((str(one["reason"]) for one in conditions if one["status"] == "True"), "")


def _names(shop: Shop, resource: str) -> set[str]:
    return {one["metadata"]["name"] for one in shop.kubectl.json("get", resource)["items"]}
