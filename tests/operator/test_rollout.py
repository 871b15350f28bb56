"""LivePatches from apply to delete, with the test answering for the nodes."""

import base64
import subprocess
import time
import urllib.request

import pytest
from installed import SYSTEM
from stage import Cluster, make_graft, wait

from podgraft_bundle.bundle import decode

pytestmark = pytest.mark.usefixtures("operator")


def test_apply_to_done_and_back(cluster: Cluster) -> None:
    """One pod at a time is patched, counted and shown; deleting the LivePatch reverts before it goes."""
    cluster.add_config_map(make_graft())
    for number in range(3):
        cluster.add_pod(f"redis-{number}", number)
    cluster.apply(strategy={"maxParallel": "25%"})
    for number in range(3):
        assert cluster.wait_items(number)[0]["pod"]["name"] == f"redis-{number}"
        assert not any(cluster.items(later) for later in range(number + 1, 3)), "more than one at a time"
        assert cluster.live_patch()["status"]["conditions"][0]["status"] == "False"
        cluster.answer(number)
    ready = cluster.wait_condition("Ready", "Patched")
    status = cluster.live_patch()["status"]
    assert status["pods"] == {"matched": 3, "patched": 3, "pending": 0, "failed": 0, "notApplicable": 0}
    assert status["threads"] == {"total": 24, "migrated": 24}
    assert status["summary"] == {"cve": "CVE-2025-32023", "patched": "3/3", "threads": "24/24"}
    assert status["maxHeldMicroseconds"] == 12.5
    assert ready["observedGeneration"] == status["observedGeneration"] == 1
    cluster.api.delete(cluster.path("livepatches", "lp"))
    for number in range(3):
        cluster.wait_items(number, "Reverted")
        assert not cluster.gone(), "gone before the last revert"
        cluster.answer(number)
    wait(cluster.gone, "the LivePatch is gone")
    for number in range(3):
        assert not cluster.api.exists(cluster.node_path(number)), "an empty NodePatch is left"


def test_bundle_reaches_agents_by_digest_and_is_collected(cluster: Cluster) -> None:
    """The chunks are the bundle without signatures, immutable; nothing of it is left when nobody uses it."""
    graft = make_graft("other-fix")
    cluster.add_pod("redis-0", 0)
    cluster.apply(bundle={"inline": base64.b64encode(graft).decode()})
    bundle = cluster.wait_items(0)[0]["bundle"]
    name = f"podgraft-bundle-{bundle['digest'].removeprefix('sha256:')}-0"
    path = f"/api/v1/namespaces/{SYSTEM}/configmaps/{name}"
    stored = cluster.api.get(path)
    assert base64.b64decode(stored["binaryData"]["chunk"]) == make_graft("other-fix", keys=())
    signatures = path.removesuffix("-0") + "-signatures"
    assert list(cluster.api.get(signatures)["data"].values()) == [one.ed25519 for one in decode(graft).signatures]
    assert (stored["immutable"], bundle["chunks"], bundle["name"]) == (True, 1, "other-fix")
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")
    cluster.api.delete(cluster.path("livepatches", "lp"))
    cluster.wait_items(0, "Reverted")
    assert cluster.api.exists(path), "collected while a revert may need it"
    cluster.answer(0)
    wait(lambda: not cluster.api.exists(path), "the bundle is collected")
    assert not cluster.api.exists(signatures)


def test_new_and_restarted_containers_are_patched(cluster: Cluster) -> None:
    """A pod that comes later and a container that was restarted get the fix by themselves."""
    cluster.add_config_map(make_graft())
    cluster.add_pod("redis-0", 0)
    cluster.apply()
    first = cluster.wait_items(0)[0]
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")
    cluster.add_pod("redis-1", 1)
    cluster.wait_items(1)
    cluster.answer(1)
    cluster.run_containers("redis-0")
    again = wait(lambda: [one for one in cluster.items(0) if one["version"] != first["version"]], "a new version")
    assert again[0]["containers"] != first["containers"]
    assert cluster.conditions()["Ready"]["status"] == "False"
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")


def test_repatch_false_leaves_later_pods_alone(cluster: Cluster) -> None:
    """With repatch false only containers that ran when the LivePatch was created are patched."""
    cluster.add_config_map(make_graft())
    cluster.add_pod("redis-0", 0)
    cluster.apply(repatch=False)
    cluster.wait_items(0)
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")
    later = {"startedAt": "2100-01-01T00:00:00Z"}
    pod = cluster.add_pod("redis-1", 1)
    statuses = [one | {"state": {"running": later}} for one in pod["status"]["containerStatuses"]]
    # add_pod starts containers in the same second as the LivePatch may have been created.
    cluster.api.patch(cluster.path("pods", "redis-1") + "/status", {"status": {"containerStatuses": statuses}})
    wait(lambda: cluster.live_patch()["status"]["pods"]["matched"] == 1, "the late pod is not counted")
    wait(lambda: not [one for one in cluster.items(1) if one["desired"] == "Applied"], "nothing asked of it")


def test_vanished_pod_leaves_nothing(cluster: Cluster) -> None:
    """The item of a pod that is gone is removed without a word from the agent."""
    cluster.add_config_map(make_graft())
    cluster.add_pod("redis-0", 0)
    cluster.apply()
    cluster.wait_items(0)
    cluster.api.delete(cluster.path("pods", "redis-0") + "?gracePeriodSeconds=0")
    wait(lambda: not cluster.api.exists(cluster.node_path(0)), "the NodePatch is empty and gone")
    cluster.wait_condition("Ready", "NoPodsMatch")


def test_paused_begins_nothing(cluster: Cluster) -> None:
    """A paused LivePatch says so and gives no work; resumed, it goes on."""
    cluster.add_config_map(make_graft())
    cluster.add_pod("redis-0", 0)
    cluster.apply(paused=True)
    assert "1 pods wait" in cluster.wait_condition("Reconciling", "Paused")["message"]
    assert cluster.items(0) == []
    cluster.api.patch(cluster.path("livepatches", "lp"), {"spec": {"paused": False}})
    cluster.wait_items(0)


def test_straggler_is_named(cluster: Cluster) -> None:
    """A thread that stays behind is in the status with what it waits in, until it has migrated."""
    cluster.add_config_map(make_graft())
    cluster.add_pod("redis-0", 0)
    cluster.apply()
    cluster.wait_items(0)
    thread = {"tid": 4242, "name": "io_thd_1", "why": "on its stack", "function": "pfcountCommand", "syscall": "futex"}
    cluster.answer(0, "Applying", threadsMigrated=7, reason="DeadlinePassed", stragglers=[thread])
    message = cluster.wait_condition("Reconciling", "WaitingForThreads")["message"]
    for word in ("4242", "io_thd_1", "redis-0", "pfcountCommand", "futex"):
        assert word in message
    status = cluster.live_patch()["status"]
    assert status["threads"] == {"total": 8, "migrated": 7}
    assert status["stragglers"][0] == thread | {
        "pod": "redis-0", "container": "redis", "pid": 100, "waitedSeconds": 0.0
    }  # fmt: skip
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")
    assert "stragglers" not in cluster.live_patch()["status"]


def test_refusal_stops_the_rollout(cluster: Cluster) -> None:
    """A refused process is reported with its reason, and no further pod is begun behind it."""
    cluster.add_config_map(make_graft())
    for number in range(2):
        cluster.add_pod(f"redis-{number}", number)
    cluster.apply(strategy={"maxParallel": 1})
    cluster.wait_items(0)
    cluster.answer(0, "Refused", reason="PreimageMismatch", message="text of f differs at 0x1000")
    message = cluster.wait_condition("Stalled", "PreimageMismatch")["message"]
    assert "text of f differs" in message
    assert "1 pods wait" in message
    status = cluster.live_patch()["status"]
    assert status["failures"] == [
        {
            "pod": "redis-0", "container": "redis", "pid": 100,
            "reason": "PreimageMismatch", "message": "text of f differs at 0x1000",
        }
    ]  # fmt: skip
    assert status["failureCount"] == 1
    assert cluster.items(1) == []
    cluster.answer(0)
    cluster.wait_items(1)


def test_other_build_is_not_applicable(cluster: Cluster) -> None:
    """Pods that run another build are no failure, and the status says that none runs the patched one."""
    cluster.add_config_map(make_graft())
    cluster.add_pod("redis-0", 0)
    cluster.apply()
    cluster.wait_items(0)
    cluster.answer(0, "NotApplicable")
    assert "maps the patched build" in cluster.wait_condition("Ready", "NotApplicable")["message"]
    assert cluster.live_patch()["status"]["summary"]["patched"] == "0/0"


def test_new_bundle_takes_the_old_one_back_first(cluster: Cluster) -> None:
    """A changed bundle is rolled out as revert, then apply, in each pod."""
    cluster.add_config_map(make_graft())
    cluster.add_pod("redis-0", 0)
    cluster.apply()
    old = cluster.wait_items(0)[0]["bundle"]["digest"]
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")
    inline = {"configMap": None, "inline": base64.b64encode(make_graft("fix-2")).decode()}
    cluster.api.patch(cluster.path("livepatches", "lp"), {"spec": {"bundle": inline}})
    assert cluster.wait_items(0, "Reverted")[0]["bundle"]["digest"] == old
    cluster.answer(0)
    assert cluster.wait_items(0)[0]["bundle"]["name"] == "fix-2"
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")
    assert cluster.live_patch()["status"]["bundle"]["name"] == "fix-2"


def test_stale_report_does_not_count(cluster: Cluster) -> None:
    """An answer to an older version of an item is no answer."""
    cluster.add_config_map(make_graft())
    cluster.add_pod("redis-0", 0)
    cluster.apply()
    cluster.wait_items(0)
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")
    old = cluster.api.get(cluster.node_path(0))["status"]
    cluster.api.delete(cluster.path("livepatches", "lp"))
    cluster.wait_items(0, "Reverted")
    late = [one | {"phase": "Reverted"} for one in old["items"]]
    cluster.api.patch(cluster.node_path(0) + "/status", {"status": {"items": late, "agentVersion": "late"}})
    time.sleep(3)  # several looks of the operator
    assert not cluster.gone()
    assert [one["desired"] for one in cluster.items(0)] == ["Reverted"]
    cluster.answer(0)
    wait(cluster.gone, "gone after the true answer")


def test_probe_answers(cluster: Cluster, operator: "subprocess.Popen[bytes]") -> None:
    """The liveness endpoint answers while loop and watches live."""
    cluster.apply()
    cluster.wait_condition("Stalled", "ConfigMapNotFound")
    port = operator.liveness_port  # type: ignore[attr-defined]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
        assert answer.status == 200
