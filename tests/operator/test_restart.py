"""A restarted operator continues where the old one was killed."""

from installed import Start
from stage import Cluster, make_graft, wait


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
