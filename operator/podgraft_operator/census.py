"""The pods of a rollout, counted: what steps, health gates and deadlines are judged by."""

from collections.abc import Iterable
from dataclasses import dataclass

from podgraft_api.nodepatch import Phase
from podgraft_operator.change import Wish, counts_as_begun
from podgraft_operator.placement import Placed, Target, settled
from podgraft_operator.rollout import is_current, pairs


@dataclass(frozen=True)
class Census:
    """Counts of pods, but for restarts, which are those of containers.

    matched: pods that can be patched: without other builds, silent nodes, and those another LivePatch has.
    begun, done: of these, whose patch was asked for, and is in. unready: names of begun ones that are no longer ready.
    digests: bundles that any item still names.
    """

    matched: int = 0
    begun: int = 0
    done: int = 0
    unready: tuple[str, ...] = ()
    restarts: int = 0
    digests: frozenset[str] = frozenset()

    @property
    def awaited(self) -> int:
        """Pods that were begun and are not done."""
        return self.begun - self.done


def count(wish: Wish, targets: Iterable[Target], placed: Iterable[Placed]) -> Census:
    """Count the pods that a LivePatch selects, by the bundle that it rolls out."""
    there = {one.item.id: one for one in placed}
    wanted = pairs(wish, targets, there)
    both = [(one, there.get(key)) for key, one in wanted.items()]
    begun = [(target, one) for target, one in both if one is not None and counts_as_begun(wish, target, one)]
    return Census(
        matched=sum(_can_be_patched(wish, target, one) for target, one in both),
        begun=len(begun),
        done=sum(is_current(wish, target, one) for target, one in begun),
        unready=tuple(sorted(target.pod.name for target, one in begun if _was_ready(one) and not target.ready)),
        restarts=sum(_restarts(target, one) for target, one in begun),
        digests=frozenset(one.item.bundle.digest for one in there.values()),
    )


def _can_be_patched(wish: Wish, target: Target, placed: Placed | None) -> bool:
    if placed is None:
        return not target.blocked
    if is_current(wish, target, placed):
        return placed.report is not None and placed.report.phase is Phase.APPLIED
    return not target.blocked and not (placed.silent and not settled(placed))


def _was_ready(placed: Placed) -> bool:
    return placed.item.baseline is None or placed.item.baseline.ready


def _restarts(target: Target, placed: Placed) -> int:
    return max(0, target.restarts - placed.item.baseline.restarts) if placed.item.baseline is not None else 0
