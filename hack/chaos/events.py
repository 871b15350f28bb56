"""The events: each does one thing that happens to a cluster, chosen and timed by one seeded generator."""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hack.chaos.excuses import Excuses
from hack.cluster import disrupt, local
from hack.cluster.layout import CONTROL_PLANE, NODES, State, machine_name
from hack.fleet import bundles
from hack.fleet.ledger import Ledger
from hack.fleet.shop import Server, Shop, number_of
from hack.fleet.system import System, engines
from hack.fleet.waiting import until
from hack.tools import ToolFailedError, say

FEWEST, MOST = 3, 7
NODE_SECONDS = 180.0


@dataclass
class Chaos:
    """The state that the events leave behind: what the LivePatch shall be, how many pods there shall be."""

    shop: Shop
    system: System
    dice: random.Random
    ledger: Ledger = field(default_factory=Ledger.from_now)
    excuses: Excuses = field(default_factory=Excuses)
    counts: Counter[str] = field(default_factory=Counter)
    replicas: int = 5
    bundle: str = bundles.FIRST
    paused: bool = False
    parallel: int = 2
    steps: tuple[int, ...] = ()
    began: float = field(default_factory=time.monotonic)

    def run(self, seconds: float) -> None:
        """Let events happen for so long; one that cannot happen now (its victim is down already) is counted as such."""
        kinds, weights = zip(*((kind, weight) for kind, (_, weight) in EVENTS.items()), strict=True)
        while time.monotonic() - self.began < seconds:
            kind = self.dice.choices(kinds, weights)[0]
            try:
                about = EVENTS[kind][0](self)
                self.counts[kind] += 1
            except ToolFailedError as error:
                about = f"could not happen: {str(error)[:200]}"
                self.counts["could not happen"] += 1
            self.ledger.collect()
            say(f"{time.monotonic() - self.began:6.0f} s  {kind:28} {about}")
            time.sleep(self.dice.uniform(1, 6))

    def apply(self) -> bool:
        """Write the LivePatch as it shall be; returns True, or raises ToolFailedError."""
        strategy = {
            "maxParallel": self.parallel,
            "threadDeadlineSeconds": 30,
            "steps": [step for pods in self.steps for step in ({"pods": pods}, {"pause": {"seconds": 2}})],
        }
        self.shop.patch(self.bundle, paused=self.paused, strategy=strategy)
        return True

    def server(self) -> Server:
        """Return a server by chance."""
        there = self.shop.servers()
        if not there:
            raise ToolFailedError("no server runs")
        return self.dice.choice([there[name] for name in sorted(there)])

    def node(self) -> str:
        """Return a node by chance."""
        return machine_name(self.dice.choice(NODES))


def _kill_operator(chaos: Chaos) -> str:
    disrupt.kill(chaos.system.process("operator"))
    return ""


def _kill_agent(chaos: Chaos) -> str:
    node = chaos.node()
    disrupt.kill(chaos.system.process("agent", node))
    return node


def _delete_agent(chaos: Chaos) -> str:
    node = chaos.node()
    pod = chaos.system.pod("agent", node)
    if pod is None:
        raise ToolFailedError(f"no agent on {node}")
    chaos.system.kubectl.run("delete", "pod", pod["metadata"]["name"], "--wait=false")
    return node


def _kill_engine(chaos: Chaos) -> str:
    """Give the engines something to do, and kill the first that is seen, a moment later."""
    server = chaos.server()
    agent = chaos.system.process("agent", server.node)
    chaos.excuses.add(server.pod, time.time())
    disrupt.kill(server.pid)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for pid in engines(agent):
            time.sleep(chaos.dice.uniform(0, 0.8))
            disrupt.kill(pid)
            return f"{server.node}, at work for {server.pod}"
        time.sleep(0.01)
    raise ToolFailedError(f"no engine ran on {server.node} within 20 s")


def _kill_server(chaos: Chaos) -> str:
    server = chaos.server()
    chaos.excuses.add(server.pod, time.time())
    disrupt.kill(server.pid)
    return server.pod


def _delete_pod(chaos: Chaos) -> str:
    server = chaos.server()
    chaos.excuses.add(server.pod, time.time())
    chaos.shop.kubectl.run("delete", "pod", server.pod, "--wait=false")
    return server.pod


def _scale(chaos: Chaos) -> str:
    before, now = {pod["metadata"]["name"] for pod in chaos.shop.pods()}, time.time()
    replicas = chaos.dice.choice([count for count in range(FEWEST, MOST + 1) if count != chaos.replicas])
    chaos.shop.kubectl.run("scale", "deployment/redis", f"--replicas={replicas}")
    was, chaos.replicas = chaos.replicas, replicas
    until("the new number of pods", lambda: len(chaos.shop.pods()) == replicas, 60)
    for pod in before - {pod["metadata"]["name"] for pod in chaos.shop.pods()}:
        chaos.excuses.add(pod, now)
    return f"{was} to {replicas}"


def _edit(chaos: Chaos) -> str:
    chaos.parallel = chaos.dice.randint(1, 3)
    chaos.steps = tuple(sorted(chaos.dice.sample(range(1, 4), chaos.dice.randint(0, 2))))
    chaos.apply()
    return f"maxParallel {chaos.parallel}, steps {chaos.steps}"


def _pause(chaos: Chaos) -> str:
    chaos.paused = not chaos.paused
    chaos.apply()
    return str(chaos.paused)


def _change_bundle(chaos: Chaos) -> str:
    chaos.bundle = bundles.SECOND if chaos.bundle == bundles.FIRST else bundles.FIRST
    chaos.apply()
    return chaos.bundle


def _create_anew(chaos: Chaos) -> str:
    wait = chaos.dice.choice([True, False])
    if wait:
        chaos.shop.unpatch()
    else:
        chaos.shop.kubectl.run("delete", "livepatch", "fix", "--ignore-not-found", "--wait=false")
        time.sleep(chaos.dice.uniform(0, 2))
        until("the old one gone", lambda: not chaos.shop.kubectl.json("get", "livepatches")["items"], 120)
    chaos.apply()
    return "after its revert" if wait else "in the middle of it"


def _restart_api_server(_: Chaos) -> str:
    disrupt.kill(disrupt.program(State.default(), CONTROL_PLANE, "kube-apiserver"))
    return ""


def _cut_network(chaos: Chaos) -> str:
    node, seconds = chaos.node(), chaos.dice.uniform(5, 20)
    with disrupt.cut_off(State.default(), number_of(node)):
        time.sleep(seconds)
    return f"{node}, {seconds:.0f} s"


def _reboot_node(chaos: Chaos) -> str:
    node = chaos.node()
    _power_cut(chaos, node)
    time.sleep(chaos.dice.uniform(0, 10))
    _power_on(chaos, node)
    return node


def _lose_node(chaos: Chaos) -> str:
    node = chaos.node()
    _power_cut(chaos, node)
    chaos.shop.kubectl.run("delete", "node", node)
    time.sleep(chaos.dice.uniform(10, 30))
    _power_on(chaos, node)
    return f"{node}; a new one of that name came later"


def _power_cut(chaos: Chaos, node: str) -> None:
    chaos.ledger.collect()
    for pod in chaos.shop.pods():
        if pod["spec"].get("nodeName") == node:
            chaos.excuses.add(pod["metadata"]["name"], time.time())
    local.switch_off(State.default(), number_of(node))


def _power_on(chaos: Chaos, node: str) -> None:
    local.switch_on(State.default(), number_of(node))
    until("the node", lambda: _is_ready(chaos, node), NODE_SECONDS)


def _is_ready(chaos: Chaos, node: str) -> bool:
    found = {one["metadata"]["name"]: one for one in chaos.shop.kubectl.json("get", "nodes")["items"]}
    conditions = found[node]["status"].get("conditions", ()) if node in found else ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


# What happens, and how often in relation to the others.
EVENTS: dict[str, tuple[Callable[[Chaos], str], int]] = {
    "operator killed": (_kill_operator, 4),
    "agent killed": (_kill_agent, 6),
    "agent's pod deleted": (_delete_agent, 2),
    "engine killed": (_kill_engine, 6),
    "server killed": (_kill_server, 5),
    "pod deleted": (_delete_pod, 3),
    "scaled": (_scale, 5),
    "strategy edited": (_edit, 3),
    "paused or resumed": (_pause, 4),
    "bundle changed": (_change_bundle, 5),
    "LivePatch deleted and created": (_create_anew, 2),
    "API server killed": (_restart_api_server, 1),
    "network of a node cut": (_cut_network, 1),
    "node rebooted": (_reboot_node, 1),
    "node lost and replaced": (_lose_node, 1),
}
