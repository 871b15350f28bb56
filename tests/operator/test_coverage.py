"""Which containers get the patch, on real processes: the right ones, and none is called done unseen."""

from pathlib import Path

import pytest
from stage import Cluster, wait
from test_agent import StartAgent, Target, add_pod, apply, built, forge, in_container, runs, start_agent, target

# Fixtures of the module that they come from.
__all__ = ["built", "start_agent", "target"]

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("operator")]
PAIRS = Path(__file__).parents[1] / "targets/pairs.c"


def test_every_container_counts(
    cluster: Cluster, target: Target, built: Path, start_agent: StartAgent, tmp_path: Path
) -> None:
    """A container that nobody sees keeps its pod from being done; one of another build is left alone and does not."""
    add_pod(cluster, target)
    other_build = forge.compile_program(PAIRS, tmp_path / "pairs", "-DOTHER_BUILD", "-O1")
    with start_agent(), in_container([other_build, "1", "1"]) as other:
        apply(cluster, built, containers=[])

        def pending() -> bool:
            items = cluster.api.get(cluster.node_path(0)).get("status", {}).get("items", [])
            return any(
                (one["phase"], one.get("reason")) == ("Pending", "ContainerNotVisible")
                and [process["phase"] for process in one["processes"]] == ["Applied"]
                for one in items
            )

        wait(lambda: cluster.items(0), "asked")
        wait(pending, "the process that is seen is patched, the pod is not done")
        assert runs(target) == "new"
        status = cluster.live_patch()["status"]["pods"]
        assert (status["patched"], status["notApplicable"]) == (0, 0)
        statuses = cluster.api.get(cluster.path("pods", "redis-0"))["status"]["containerStatuses"]
        statuses[1]["containerID"] = f"containerd://{other.container}"
        cluster.api.patch(cluster.path("pods", "redis-0") + "/status", {"status": {"containerStatuses": statuses}})
        cluster.wait_condition("Ready", "Patched")
        assert runs(other) == "old"
        assert cluster.live_patch()["status"]["pods"]["failed"] == 0
