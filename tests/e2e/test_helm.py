"""The chart is uninstalled while patches are in place."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.cluster import kind
from hack.demo import on_cluster
from hack.demo.kubernetes import Kubectl
from hack.fleet.shop import PATCH, Server, Shop
from hack.fleet.system import System
from hack.fleet.waiting import until
from hack.tools import ToolFailedError, run

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(kind.is_usable(), reason="looks at processes of machines that are made from namespaces"),
]


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
def patched(shop: Shop) -> dict[str, Server]:
    """Three patched pods; returns their servers."""
    shop.patch()
    until("a whole rollout", lambda: is_done(shop))
    return shop.servers()


def is_done(shop: Shop, pods: int = 3) -> bool:
    return shop.is_ready() and shop.patched() == f"{pods}/{pods}" and set(shop.generations().values()) == {1}


def helm(kubeconfig: Path, *words: str) -> None:
    run("helm", f"--kubeconfig={kubeconfig}", *words, f"--namespace={on_cluster.SYSTEM}", "--wait", "--timeout=300s")


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
