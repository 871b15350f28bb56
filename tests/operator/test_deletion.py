"""A LivePatch can always be deleted, and no revert is forgotten."""

import pytest
from stage import Cluster, make_graft, wait

pytestmark = pytest.mark.usefixtures("operator")


def patched(cluster: Cluster, **spec: object) -> None:
    """Bring one pod on node 0 to Ready."""
    cluster.add_config_map(make_graft())
    cluster.add_pod("redis-0", 0)
    cluster.apply(**spec)
    cluster.wait_items(0)
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")


def reasons(cluster: Cluster) -> set[str]:
    return {one["reason"] for one in cluster.api.get(cluster.path("events"))["items"]}


def test_keep_reverts_nothing(cluster: Cluster) -> None:
    """With deletionPolicy Keep the items just go."""
    patched(cluster, deletionPolicy="Keep")
    cluster.api.delete(cluster.path("livepatches", "lp"))
    wait(cluster.gone, "gone")
    assert not cluster.api.exists(cluster.node_path(0))


def test_silent_agent_does_not_block(cluster: Cluster) -> None:
    """A node that does not answer is reported and not waited for; its revert stays in its NodePatch."""
    patched(cluster)
    cluster.api.delete(cluster.path("livepatches", "lp"))
    cluster.wait_items(0, "Reverted")
    wait(cluster.gone, "gone although the agent is silent", 15)
    assert "AgentNotAnswering" in reasons(cluster)
    assert [one["desired"] for one in cluster.items(0)] == ["Reverted"], "the revert was forgotten"
    cluster.answer(0)
    wait(lambda: not cluster.api.exists(cluster.node_path(0)), "cleared when the agent is back")


def test_silent_agent_is_reported_in_a_rollout(cluster: Cluster) -> None:
    """A silent node is a failure in the status and does not hold up the others."""
    cluster.add_config_map(make_graft())
    for number in range(2):
        cluster.add_pod(f"redis-{number}", number)
    cluster.apply(strategy={"maxParallel": 1})
    cluster.wait_items(0)
    cluster.wait_items(1)
    cluster.answer(1)
    message = cluster.wait_condition("Stalled", "AgentNotAnswering")["message"]
    assert cluster.node(0) in message
    assert cluster.live_patch()["status"]["pods"] == {
        "matched": 2, "patched": 1, "pending": 0, "failed": 1, "notApplicable": 0
    }  # fmt: skip
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")


def test_a_deletion_counts_down(cluster: Cluster) -> None:
    """While pods go back, `kubectl get` tells how many, and how many of their threads, are still patched."""
    cluster.add_config_map(make_graft())
    for number in range(2):
        cluster.add_pod(f"redis-{number}", number)
    cluster.apply(strategy={"maxParallel": 2})
    for number in range(2):
        cluster.wait_items(number)
        cluster.answer(number)
    cluster.wait_condition("Ready", "Patched")
    cluster.api.delete(cluster.path("livepatches", "lp"))
    cluster.wait_items(0, "Reverted")
    cluster.wait_items(1, "Reverted")
    cluster.answer(1)

    def shown() -> list[str]:
        cluster.answer(0, "Reverting", threadsMigrated=3)
        status = cluster.live_patch()["status"]
        assert status["pods"]["matched"] == 2
        return [status["summary"]["patched"], status["summary"]["threads"]]

    wait(lambda: shown() == ["1/2", "3/8"], "counted down")
    cluster.answer(0)
    wait(cluster.gone, "gone")


def test_busy_agent_is_waited_for_but_not_for_ever(cluster: Cluster) -> None:
    """An agent that reports a thread it cannot revert is waited for; after revertSeconds the deletion ends."""
    patched(cluster)
    cluster.api.delete(cluster.path("livepatches", "lp"))
    cluster.wait_items(0, "Reverted")
    thread = {"tid": 7, "name": "main", "why": "on its stack"}

    def still_there() -> bool:
        thread["waitedSeconds"] = thread.get("waitedSeconds", 0) + 1  # type: ignore[operator]
        cluster.answer(0, "Reverting", stragglers=[thread])
        return cluster.gone()

    wait(lambda: cluster.live_patch()["status"]["conditions"][0]["reason"] == "Reverting", "it says Reverting")
    wait(still_there, "gone after the deadline", 20)
    assert "RevertUnfinished" in reasons(cluster)
    assert [one["desired"] for one in cluster.items(0)] == ["Reverted"]


def test_forced_deletion_still_reverts(cluster: Cluster) -> None:
    """Somebody strips the finalizer; what the LivePatch left behind is reverted all the same."""
    patched(cluster)
    cluster.api.delete(cluster.path("livepatches", "lp"))
    if not cluster.gone():
        cluster.api.patch(cluster.path("livepatches", "lp"), {"metadata": {"finalizers": []}})
    wait(cluster.gone, "gone")
    cluster.wait_items(0, "Reverted")
    cluster.answer(0)
    wait(lambda: not cluster.api.exists(cluster.node_path(0)), "cleared")
