"""Turning points: what becomes an Event, and what does not."""

import pytest

from podgraft_api.conditions import Condition, condition
from podgraft_api.livepatch import LivePatchStatus
from podgraft_api.nodepatch import (
    BundleRef,
    ContainerRef,
    Desired,
    Item,
    ItemReport,
    LivePatchRef,
    Phase,
    PodRef,
    ProcessReport,
)
from podgraft_operator.rollout import Placed, PodState, Standing
from podgraft_operator.turns import condition_turn, details, mark, pods_turn


def status(kind: str, reason: str, message: str = "") -> LivePatchStatus:
    true = condition(kind, status=True, reason=reason, message=message, generation=1)
    others: list[Condition] = [
        condition(one, status=False, reason=reason, message="", generation=1)
        for one in ("Ready", "Reconciling", "Stalled")
        if one != kind
    ]
    return LivePatchStatus(conditions=(true, *others))


NEW = LivePatchStatus()


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (NEW, status("Reconciling", "Progressing"), ("Normal", "RolloutBegan")),
        (status("Reconciling", "Progressing"), status("Reconciling", "WaitingForThreads"), None),
        (status("Reconciling", "WaitingForThreads"), status("Reconciling", "Progressing"), None),
        (status("Reconciling", "Progressing"), status("Reconciling", "Paused"), ("Normal", "Paused")),
        (status("Reconciling", "Paused"), status("Reconciling", "Progressing"), ("Normal", "RolloutResumed")),
        (status("Ready", "Patched"), status("Reconciling", "Progressing"), ("Normal", "RolloutBegan")),
        (status("Reconciling", "Progressing"), status("Ready", "Patched"), ("Normal", "Patched")),
        (status("Ready", "Patched"), status("Ready", "Patched", "other words"), None),
        (status("Ready", "Patched"), status("Reconciling", "Reverting"), ("Normal", "Reverting")),
        (status("Reconciling", "Progressing"), status("Stalled", "NoPatchSite"), ("Warning", "NoPatchSite")),
        (status("Stalled", "NoPatchSite"), status("Stalled", "AlreadyTraced"), ("Warning", "AlreadyTraced")),
    ],
)
def test_conditions_tell_when_they_turn(
    before: LivePatchStatus, after: LivePatchStatus, told: tuple[str, str] | None
) -> None:
    """Beginning, end, stall and pause are told; steps on the way and other words are not."""
    turn = condition_turn(before, after)
    assert (None if turn is None else (turn.kind, turn.reason)) == told


def state(
    name: str, standing: Standing, desired: Desired = Desired.APPLIED, report: ItemReport | None = None
) -> PodState:
    pod = PodRef(namespace="shop", name=name, uid=f"uid-{name}")
    item = Item(
        id=f"lp/{pod.uid}",
        version=1,
        desired=desired,
        live_patch=LivePatchRef(namespace="shop", name="lp", uid="lp"),
        bundle=BundleRef(digest="sha256:" + "0" * 64, chunks=1, name="fix", build_id="ab"),
        pod=pod,
        containers=(ContainerRef(name="redis", id="0" * 64),),
    )
    return PodState(pod, standing, desired is Desired.APPLIED, Placed("node", item, report))


def answer(phase: Phase, **fields: str) -> ItemReport:
    return ItemReport(id="x", version=1, phase=phase, **fields)  # type: ignore[arg-type] # reason and message


def test_a_reverted_pod_is_told_from_one_that_waits() -> None:
    """The status counts both as pending; the Event is about the one that is back."""
    assert mark(state("a", Standing.PENDING, Desired.REVERTED, answer(Phase.REVERTED))) == "reverted"
    assert mark(state("a", Standing.PENDING, Desired.REVERTED, answer(Phase.REVERTING))) == "pending"
    assert mark(state("a", Standing.PENDING)) == "pending"
    assert mark(state("a", Standing.PATCHED, report=answer(Phase.APPLIED))) == "patched"


def test_many_pods_are_one_sentence() -> None:
    """At most five names, sorted, and how many more."""
    states = [state(f"p{number}", Standing.PATCHED) for number in range(9)]
    turn = pods_turn("patched", {f"p{number}": "" for number in range(8)}, states)
    assert turn.note == "8 of 9 pods patched: p0, p1, p2, p3, p4 and 3 more"
    assert (turn.kind, turn.reason) == ("Normal", "PodsPatched")
    failed = pods_turn("failed", {"p1": "NoPatchSite: too short"}, states)
    assert (failed.kind, failed.note) == ("Warning", "1 of 9 pods failed: p1 (NoPatchSite: too short)")


def test_a_failure_is_that_of_the_worst_process() -> None:
    """Where the item gives no reason, its processes do."""
    process = ProcessReport(
        container="redis", pid=7, start_time=1, phase=Phase.REFUSED, reason="NoPatchSite", message="too short"
    )
    report = ItemReport(id="x", version=1, phase=Phase.REFUSED, processes=(process,))
    assert details(state("a", Standing.FAILED, report=report)) == "NoPatchSite: too short"
    assert details(state("a", Standing.FAILED, report=answer(Phase.FAILED))) == "Failed"
