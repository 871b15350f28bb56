"""Rollouts in steps: pauses, gates that fail, deadlines, edits and the way back."""

import base64
import time

import pytest
from apiserver import Json
from stage import Cluster, make_graft, wait

from podgraft_api.progress import RESUME, REVERT

pytestmark = pytest.mark.usefixtures("operator")
LOOKS = 2.0  # seconds in which the operator looks several times


def fleet(cluster: Cluster, pods: int, **strategy: object) -> None:
    """Create pods redis-0, redis-1, … on nodes of their own, and a LivePatch for them."""
    cluster.add_config_map(make_graft())
    for number in range(pods):
        cluster.add_pod(f"redis-{number}", number)
    cluster.apply(strategy={"maxParallel": "100%"} | strategy)


def inline(name: str) -> Json:
    return {"configMap": None, "inline": base64.b64encode(make_graft(name)).decode()}


def patch(cluster: Cluster, number: int) -> None:
    cluster.wait_items(number)
    cluster.answer(number)


def exchange(cluster: Cluster, number: int) -> Json:
    """Answer for a node as its pod changes from one bundle to another; returns the new item."""
    cluster.wait_items(number, "Reverted")
    cluster.answer(number)
    item: Json = cluster.wait_items(number)[0]
    cluster.answer(number)
    return item


def rollout(cluster: Cluster) -> Json:
    found: Json = cluster.live_patch()["status"]["rollout"]
    return found


def truths(cluster: Cluster) -> dict[str, str]:
    return {kind: one["status"] for kind, one in cluster.conditions().items()}


def test_steps_and_pauses(cluster: Cluster) -> None:
    """Each step patches its pods and no more; a pause waits for its time or for somebody, and is not Stalled."""
    fleet(cluster, 4, steps=[{"pods": 1}, {"pause": {}}, {"pods": "50%"}, {"pause": {"seconds": 3}}])
    patch(cluster, 0)
    message = cluster.wait_condition("Reconciling", "StepPaused")["message"]
    assert "step 2 of 4; 1 of 4 pods patched" in message
    assert RESUME in message
    assert truths(cluster) == {"Ready": "False", "Reconciling": "True", "Stalled": "False"}
    time.sleep(LOOKS)
    assert not any(cluster.items(number) for number in (1, 2, 3)), "begun in a pause"
    cluster.annotate(RESUME, "now")
    patch(cluster, 1)
    wait(lambda: rollout(cluster)["step"] == 3, "the second pause")
    assert "paused until 20" in cluster.wait_condition("Reconciling", "StepPaused")["message"]
    assert not any(cluster.items(number) for number in (2, 3)), "begun in a pause"
    patch(cluster, 2)
    patch(cluster, 3)
    cluster.wait_condition("Ready", "Patched")
    assert (rollout(cluster)["complete"], rollout(cluster)["step"]) == (True, 4)
    cluster.add_pod("redis-9", 9)
    patch(cluster, 9)
    cluster.wait_condition("Ready", "Patched")


def test_failed_gate_pauses(cluster: Cluster) -> None:
    """A pod that is no longer ready stops the rollout for good; it goes on when somebody resumes."""
    fleet(cluster, 2, steps=[{"pods": 1}], health={})
    cluster.wait_items(0)
    cluster.set_ready("redis-0", "False")
    message = cluster.wait_condition("Stalled", "PodNotReady")["message"]
    assert "redis-0" in message
    cluster.answer(0)
    cluster.set_ready("redis-0")
    time.sleep(LOOKS)
    assert cluster.items(1) == [], "went past a failed gate"
    assert [one["desired"] for one in cluster.items(0)] == ["Applied"], "onFailure is Pause"
    assert truths(cluster) == {"Ready": "False", "Reconciling": "False", "Stalled": "True"}
    cluster.annotate(RESUME, "now")
    patch(cluster, 1)
    cluster.wait_condition("Ready", "Patched")


def test_failed_gate_reverts(cluster: Cluster) -> None:
    """A restart of a patched container takes the patch back everywhere; another bundle begins anew."""
    health = {"maxRestarts": 0}
    fleet(cluster, 2, steps=[{"pods": 1}, {"pause": {}}], health=health, onFailure="Revert")
    patch(cluster, 0)
    cluster.wait_condition("Reconciling", "StepPaused")
    cluster.run_containers("redis-0", restarts=1)
    cluster.wait_items(0, "Reverted")
    assert "TooManyRestarts" in cluster.wait_condition("Reconciling", "Reverting")["message"]
    cluster.answer(0)
    assert "reverted" in cluster.wait_condition("Stalled", "TooManyRestarts")["message"]
    assert cluster.live_patch()["status"]["pods"]["patched"] == 0
    wait(lambda: not cluster.api.exists(cluster.node_path(0)), "nothing is asked of the node any more")
    time.sleep(LOOKS)
    assert cluster.items(0) == cluster.items(1) == [], "applied again"
    cluster.edit(bundle=inline("fix-2"))
    assert cluster.wait_items(0)[0]["bundle"]["name"] == "fix-2"
    cluster.answer(0)
    cluster.wait_condition("Reconciling", "StepPaused")


def test_failed_rollout_goes_back_to_the_bundle_before(cluster: Cluster) -> None:
    """With onFailure Revert a pod of a new bundle gets the old bundle again, and the others never lost it."""
    fleet(cluster, 2, onFailure="Revert", health={})
    patch(cluster, 0)
    patch(cluster, 1)
    cluster.wait_condition("Ready", "Patched")
    before = cluster.items(1)
    cluster.edit(bundle=inline("fix-2"), strategy={"steps": [{"pods": 1}, {"pause": {}}]})
    assert exchange(cluster, 0)["bundle"]["name"] == "fix-2"
    cluster.wait_condition("Reconciling", "StepPaused")
    cluster.set_ready("redis-0", "False")
    assert exchange(cluster, 0)["bundle"] == before[0]["bundle"]
    cluster.wait_condition("Stalled", "PodNotReady")
    assert cluster.items(1) == before
    cluster.edit(bundle={"inline": None, "configMap": {"name": "fix"}})
    cluster.wait_condition("Ready", "Patched")
    assert cluster.items(1) == before


def test_spec_back_to_the_bundle_before_needs_no_steps(cluster: Cluster) -> None:
    """Whoever takes an edit back in the middle of the rollout gets the old bundle everywhere, without pauses."""
    fleet(cluster, 2, steps=[{"pods": 1}, {"pause": {"seconds": 1}}])
    patch(cluster, 0)
    patch(cluster, 1)
    cluster.wait_condition("Ready", "Patched")
    before = cluster.items(1)
    cluster.edit(bundle=inline("fix-2"), strategy={"steps": [{"pods": 1}, {"pause": {}}]})
    exchange(cluster, 0)
    cluster.wait_condition("Reconciling", "StepPaused")
    cluster.edit(bundle={"inline": None, "configMap": {"name": "fix"}})
    assert exchange(cluster, 0)["bundle"] == before[0]["bundle"]
    cluster.wait_condition("Ready", "Patched")
    assert cluster.items(1) == before


def test_other_bundle_in_the_middle_begins_anew(cluster: Cluster) -> None:
    """A new bundle starts at step one, in the pods that have the abandoned bundle; the rest waits for its step."""
    fleet(cluster, 3, steps=[{"pods": 1}, {"pause": {}}])
    patch(cluster, 0)
    cluster.wait_condition("Reconciling", "StepPaused")
    cluster.edit(bundle=inline("fix-2"))
    assert exchange(cluster, 0)["bundle"]["name"] == "fix-2"
    cluster.wait_condition("Reconciling", "StepPaused")
    assert cluster.items(1) == cluster.items(2) == []
    cluster.edit(strategy={"steps": [{"pods": 2}, {"pause": {}}]})
    patch(cluster, 1)
    cluster.wait_condition("Reconciling", "StepPaused")
    assert cluster.items(2) == []


def test_progress_deadline(cluster: Cluster) -> None:
    """A thread that never moves fails the rollout after the deadline; it goes on when somebody resumes."""
    fleet(cluster, 2, maxParallel=1, progressDeadlineSeconds=3)
    cluster.wait_items(0)
    cluster.answer(0, "Applying", reason="DeadlinePassed")
    cluster.wait_condition("Stalled", "ProgressDeadlineExceeded")
    cluster.answer(0)
    time.sleep(LOOKS)
    assert cluster.items(1) == [], "went on behind a passed deadline"
    cluster.annotate(RESUME, "now")
    patch(cluster, 1)
    cluster.wait_condition("Ready", "Patched")


def test_late_in_the_last_pod_holds_up_nobody(cluster: Cluster) -> None:
    """A deadline that passes when every pod was begun keeps no new pod from the fix; done late is done."""
    fleet(cluster, 1, progressDeadlineSeconds=2)
    cluster.wait_items(0)
    cluster.answer(0, "Refused", reason="PreimageMismatch", message="text of f differs")
    assert "text of f differs" in cluster.wait_condition("Stalled", "ProgressDeadlineExceeded")["message"]
    cluster.add_pod("redis-1", 1)
    patch(cluster, 1)
    assert cluster.wait_condition("Stalled", "ProgressDeadlineExceeded")
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")


def test_revert_by_request(cluster: Cluster) -> None:
    """The annotation takes a complete rollout back, once; a resume begins it again."""
    fleet(cluster, 1)
    patch(cluster, 0)
    cluster.wait_condition("Ready", "Patched")
    cluster.annotate(REVERT, "today")
    cluster.wait_items(0, "Reverted")
    cluster.answer(0)
    cluster.wait_condition("Stalled", "RevertRequested")
    wait(lambda: not cluster.api.exists(cluster.node_path(0)), "nothing is asked of the node any more")
    cluster.annotate(RESUME, "tomorrow")
    patch(cluster, 0)
    cluster.wait_condition("Ready", "Patched")


def test_requests_of_a_copied_object_do_nothing(cluster: Cluster) -> None:
    """A LivePatch that is created with the annotations of another one is rolled out as any other."""
    cluster.add_config_map(make_graft())
    cluster.add_pod("redis-0", 0)
    cluster.add_pod("redis-1", 1)
    body = {"apiVersion": "podgraft.dev/v1alpha1", "kind": "LivePatch"}
    spec = {
        "bundle": {"configMap": {"name": "fix"}},
        "selector": {"matchLabels": {"app": "redis"}},
        "strategy": {"steps": [{"pods": 1}, {"pause": {}}]},
    }
    meta = {"name": "lp", "annotations": {RESUME: "old", REVERT: "old"}}
    cluster.api.create(cluster.path("livepatches"), body | {"metadata": meta, "spec": spec})
    patch(cluster, 0)
    cluster.wait_condition("Reconciling", "StepPaused")
    time.sleep(LOOKS)
    assert cluster.items(1) == []


def test_crashed_container_is_neither_forgotten_nor_replaced(cluster: Cluster) -> None:
    """Between crash and restart a pod keeps its item, its baseline and its place in the step."""
    fleet(cluster, 2, steps=[{"pods": 1}, {"pause": {}}], health={"ready": False, "maxRestarts": 3})
    patch(cluster, 0)
    cluster.wait_condition("Reconciling", "StepPaused")
    down = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 1}
    statuses = [one | down for one in cluster.pods["redis-0"]["status"]["containerStatuses"]]
    cluster.api.patch(cluster.path("pods", "redis-0") + "/status", {"status": {"containerStatuses": statuses}})
    cluster.answer(0, "NotApplicable")
    time.sleep(LOOKS)
    assert [one["baseline"]["restarts"] for one in cluster.items(0)] == [0]
    assert cluster.items(1) == [], "another pod took its place"
    cluster.run_containers("redis-0", restarts=4)
    assert "8 container restarts" in cluster.wait_condition("Stalled", "TooManyRestarts")["message"]


def test_percentages_that_shrink_are_told(cluster: Cluster) -> None:
    """What the schema cannot compare is a condition."""
    fleet(cluster, 1, steps=[{"pods": "50%"}, {"pods": "20%"}])
    assert "must not be fewer" in cluster.wait_condition("Stalled", "InvalidSpec")["message"]
    assert cluster.items(0) == []


def test_two_for_the_same_function(cluster: Cluster) -> None:
    """The LivePatch that came first keeps the pod; the other says Conflict, and gets it when the first is gone."""
    fleet(cluster, 1)
    patch(cluster, 0)
    cluster.wait_condition("Ready", "Patched")
    cluster.apply("other", bundle={"inline": inline("fix-2")["inline"]})
    message = cluster.wait_condition("Stalled", "Conflict", "other")["message"]
    assert "redis-0: LivePatch lp patches the same functions" in message
    assert [one["bundle"]["name"] for one in cluster.items(0)] == ["redis-fix"]
    cluster.api.delete(cluster.path("livepatches", "lp"))
    cluster.wait_items(0, "Reverted")
    cluster.answer(0)
    wait(cluster.gone, "the first is gone")
    assert cluster.wait_items(0)[0]["bundle"]["name"] == "fix-2"
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched", "other")
