"""The rollout alone: decisions one by one, and invariants under random events."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from podgraft_api.nodepatch import (
    BundleRef,
    ContainerRef,
    Desired,
    Item,
    ItemReport,
    LivePatchRef,
    Phase,
    PodRef,
)
from podgraft_operator.change import Wish
from podgraft_operator.placement import Placed, Target, holds_slot, slots
from podgraft_operator.rollout import Plan, Standing, plan

LP = LivePatchRef(namespace="shop", name="fix", uid="lp")


def bundle(name: str, *replaces: str, build_id: str = "ab" * 20) -> BundleRef:
    return BundleRef(
        digest="sha256:" + name * 64, chunks=1, name=f"b-{name}", build_id=build_id, replaces=tuple(replaces)
    )


def target(number: int, restart: int = 0) -> Target:
    ref = PodRef(namespace="shop", name=f"p{number}", uid=f"u{number}")
    return Target(f"n{number % 3}", ref, (ContainerRef(name="c", id=f"{number:02x}{restart:02x}" * 16),))


def placed(one: Target, phase: Phase | None, desired: Desired = Desired.APPLIED, name: str = "a") -> Placed:
    item = Item(
        id=f"lp/{one.pod.uid}", version=1, desired=desired, live_patch=LP,
        bundle=bundle(name), pod=one.pod, containers=one.containers,
    )  # fmt: skip
    report = ItemReport(id=item.id, version=1, phase=phase) if phase is not None else None
    return Placed(one.node, item, report)


WISH = Wish(LP, bundle=bundle("a"), max_parallel=1)
ALIVE = {f"u{number}" for number in range(20)}


def summary(decided: Plan) -> list[tuple[str, str | None]]:
    """Return pod uid and what is asked of it, for every change."""
    return [(one.id[3:], one.item.desired.value if one.item else None) for one in decided.changes]


@pytest.mark.parametrize(
    ("parallel", "matched", "expected"),
    [(1, 10, 1), (3, 10, 3), ("25%", 12, 3), ("25%", 13, 4), ("1%", 3, 1), ("100%", 7, 7), ("25%", 0, 1)],
)
def test_slots(parallel: int | str, matched: int, expected: int) -> None:
    """Percentages are rounded up, and one pod always may be in transition."""
    assert slots(parallel, matched) == expected


def test_one_after_the_other() -> None:
    """The next pod is begun when the one before is settled, in the order of names."""
    pods = [target(0), target(1), target(2)]
    assert summary(plan(WISH, pods, [], ALIVE)) == [("u0", "Applied")]
    assert summary(plan(WISH, pods, [placed(pods[0], None)], ALIVE)) == []
    assert summary(plan(WISH, pods, [placed(pods[0], Phase.APPLYING)], ALIVE)) == []
    assert summary(plan(WISH, pods, [placed(pods[0], Phase.APPLIED)], ALIVE)) == [("u1", "Applied")]


HOLDS: list[tuple[Callable[[Target], Placed], bool]] = [
    (lambda one: placed(one, None), True),
    (lambda one: placed(one, Phase.PENDING), True),
    (lambda one: placed(one, Phase.APPLIED), False),
    (lambda one: placed(one, Phase.NOT_APPLICABLE), False),
    (lambda one: placed(one, Phase.REFUSED), True),
    (lambda one: placed(one, Phase.FAILED, Desired.REVERTED), False),
    (lambda one: placed(one, Phase.APPLIED, Desired.REVERTED), True),
    (lambda one: placed(one, Phase.REVERTED, Desired.REVERTED), False),
    (lambda one: replace(placed(one, None), silent=True), False),
]


@pytest.mark.parametrize(("make", "expected"), HOLDS)
def test_who_holds_a_slot(make: Callable[[Target], Placed], expected: bool) -> None:
    """A bad patch stops by itself; bad reverts and dead nodes stop nobody."""
    assert holds_slot(make(target(0))) is expected


def test_paused_begins_nothing_but_a_deletion_goes_on() -> None:
    """Paused holds back what is new; leaving is not new."""
    paused = replace(WISH, paused=True)
    decided = plan(paused, [target(0)], [], ALIVE)
    assert (summary(decided), decided.waiting) == ([], 1)
    leaving = replace(paused, leaving="Revert")
    assert summary(plan(leaving, [], [placed(target(0), Phase.APPLIED)], ALIVE)) == [("u0", "Reverted")]


def test_unknown_bundle_leaves_everything_as_it_is() -> None:
    """Without a bundle nothing is begun and nothing is taken back."""
    pods = [target(0), target(1)]
    decided = plan(replace(WISH, bundle=None), pods, [placed(pods[0], Phase.APPLIED)], ALIVE)
    assert summary(decided) == []
    assert [one.standing for one in decided.states] == [Standing.PATCHED, Standing.PENDING]


def test_unselected_pod_is_reverted_and_dropped() -> None:
    """A pod that the selector no longer matches gets its old code back; then its item goes."""
    one = target(0)
    assert summary(plan(WISH, [], [placed(one, Phase.APPLIED)], ALIVE)) == [("u0", "Reverted")]
    assert summary(plan(WISH, [], [placed(one, Phase.REVERTED, Desired.REVERTED)], ALIVE)) == [("u0", None)]


def test_vanished_pod_is_dropped_whatever_it_did() -> None:
    """Nothing is asked of a pod that is gone."""
    assert summary(plan(WISH, [], [placed(target(0), Phase.APPLYING)], set())) == [("u0", None)]


def test_other_bundle_is_reverted_before_the_new_one_is_applied() -> None:
    """Two bundles of one LivePatch are never in a process together."""
    one = target(0)
    assert summary(plan(WISH, [one], [placed(one, Phase.APPLIED, name="b")], ALIVE)) == [("u0", "Reverted")]
    back = placed(one, Phase.REVERTED, Desired.REVERTED, "b")
    change = plan(WISH, [one], [back], ALIVE).changes[0]
    assert change.item is not None
    assert (change.item.desired, change.item.bundle) == (Desired.APPLIED, WISH.bundle)


@pytest.mark.parametrize(
    ("phase", "containers", "build_id", "expected"),
    [
        (Phase.APPLIED, 0, "ab", "Applied"),
        (Phase.APPLYING, 0, "ab", "Reverted"),
        (Phase.REFUSED, 0, "ab", "Reverted"),
        (Phase.APPLIED, 1, "ab", "Reverted"),
        (Phase.APPLIED, 0, "cd", "Reverted"),
    ],
)
def test_cumulative_bundle_takes_the_place_of_the_one_before(
    phase: Phase, containers: int, build_id: str, expected: str
) -> None:
    """What a bundle replaces is not taken back first, if it is in whole, in the same containers and the same build."""
    wish = replace(WISH, bundle=bundle("c", "b-b", build_id=build_id * 20))
    one = target(0, restart=containers)
    assert summary(plan(wish, [one], [placed(target(0), phase, name="b")], ALIVE)) == [("u0", expected)]


def test_restarted_container_is_patched_again() -> None:
    """New container ids make a new version of the item."""
    change = plan(WISH, [target(0, restart=1)], [placed(target(0), Phase.APPLIED)], ALIVE).changes[0]
    assert change.item is not None
    assert change.item.containers == target(0, restart=1).containers


def test_new_deadline_disturbs_only_who_still_migrates() -> None:
    """A settled pod is not asked again because a deadline was edited."""
    wish = replace(WISH, thread_deadline_seconds=99)
    assert summary(plan(wish, [target(0)], [placed(target(0), Phase.APPLIED)], ALIVE)) == []
    assert summary(plan(wish, [target(0)], [placed(target(0), Phase.APPLYING)], ALIVE)) == [("u0", "Applied")]


def test_keep_drops_everything_at_once() -> None:
    """DeletionPolicy Keep asks nobody for anything."""
    there = [placed(target(number), Phase.APPLIED) for number in range(3)]
    decided = plan(replace(WISH, leaving="Keep"), [], there, ALIVE)
    assert summary(decided) == [("u0", None), ("u1", None), ("u2", None)]
