"""A restarted operator continues where the old one was killed."""

from installed import Start
from stage import Cluster, make_graft, wait

from podgraft_api.progress import RESUME


def test_operator_killed_in_the_middle(cluster: Cluster, start_operator: Start) -> None:
    """The operator is killed during the rollout and during the revert; the next one goes on where it stood."""
    cluster.add_config_map(make_graft())
    for number in range(2):
        cluster.add_pod(f"redis-{number}", number)
    with start_operator() as first:
        cluster.apply(strategy={"maxParallel": 1})
        before = cluster.wait_items(0)
        first.kill()
    cluster.answer(0)
    with start_operator() as second:
        cluster.wait_items(1)
        assert cluster.items(0) == before, "work that was given is not given again"
        cluster.answer(1)
        cluster.wait_condition("Ready", "Patched")
        cluster.api.delete(cluster.path("livepatches", "lp"))
        cluster.wait_items(0, "Reverted")
        second.kill()
    with start_operator():
        cluster.answer(0)
        cluster.wait_items(1, "Reverted")
        cluster.answer(1)
        wait(cluster.gone, "the LivePatch is gone")


def test_operator_killed_in_a_pause_and_on_the_way_back(cluster: Cluster, start_operator: Start) -> None:
    """A pause goes on where it began, and a revert that was decided is done, though its cause is gone by then."""
    cluster.add_config_map(make_graft())
    for number in range(3):
        cluster.add_pod(f"redis-{number}", number)
    steps = [{"pods": 1}, {"pause": {}}, {"pods": 2}, {"pause": {}}]
    with start_operator() as first:
        strategy = {"maxParallel": 1, "steps": steps, "health": {}, "onFailure": "Revert"}
        cluster.apply(strategy=strategy)
        cluster.wait_items(0)
        cluster.answer(0)
        cluster.wait_condition("Reconciling", "StepPaused")
        began = cluster.live_patch()["status"]["rollout"]["pauseBegan"]
        first.kill()
    cluster.annotate(RESUME, "now")
    with start_operator() as second:
        cluster.wait_items(1)
        cluster.answer(1)
        wait(lambda: cluster.live_patch()["status"]["rollout"].get("pauseBegan", began) != began, "the second pause")
        cluster.set_ready("redis-0", "False")
        cluster.wait_items(0, "Reverted")
        second.kill()
    cluster.set_ready("redis-0")
    cluster.answer(0)
    with start_operator():
        cluster.wait_items(1, "Reverted")
        cluster.answer(1)
        cluster.wait_condition("Stalled", "PodNotReady")
        wait(lambda: not cluster.api.exists(cluster.node_path(1)), "nothing is asked of the node any more")
        assert cluster.items(2) == []
