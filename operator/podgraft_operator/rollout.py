"""The rollout as a pure function: what is wanted, what is placed, what agents reported -> the next changes.

No input or output, no clock and no memory: everything it needs lies in the resources, so a restarted operator
continues where the old one was killed. How many pods may have been begun is for `progress` to say. A pod in
transition holds one of `maxParallel` slots. One that fails to be patched keeps its slot, so that a bad patch stops
by itself after maxParallel pods; one that fails to be reverted, or whose node is silent, does not: nothing may hold
up the others.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from podgraft_api.nodepatch import Desired, Phase, PodRef, item_id
from podgraft_operator.change import Change, Wish, begins, counts_as_begun, held_back, next_change
from podgraft_operator.placement import Placed, Target, broken, holds_slot, settled, slots


class Standing(StrEnum):
    """How a pod is counted."""

    PATCHED = "patched"
    PENDING = "pending"
    FAILED = "failed"
    NOT_APPLICABLE = "notApplicable"


@dataclass(frozen=True)
class PodState:
    """One pod in the result: wanted ones make the counters, the others are on their way back."""

    pod: PodRef
    standing: Standing
    wanted: bool
    placed: Placed | None
    blocked: str | None = None


@dataclass(frozen=True)
class Plan:
    """What to write now, how every pod stands, slots held of how many, and how many pods wait."""

    changes: tuple[Change, ...]
    states: tuple[PodState, ...]
    limit: int
    held: int
    waiting: int


def plan(
    wish: Wish, targets: Iterable[Target], placed: Iterable[Placed], alive: Mapping[str, object] | set[str]
) -> Plan:
    """Decide the next changes.

    Args:
        wish: the LivePatch.
        targets: the pods that it selects now; ignored when it is leaving.
        placed: its items in all NodePatches.
        alive: uids of the pods that still run; an item of any other pod has nothing left to act on.
    """
    there = {one.item.id: one for one in placed}
    wanted = {} if wish.leaving else pairs(wish, targets, there)
    limit = slots(wish.max_parallel, len(wanted) or len(there))
    gone = {key for key, one in there.items() if one.item.pod.uid not in alive or wish.leaving == "Keep"}
    changes = [Change(there[key].node, key, None) for key in sorted(gone)]
    present = {key: one for key, one in there.items() if key not in gone}
    held = sum(holds_slot(one) for one in present.values())
    begun = sum(counts_as_begun(wish, one, present.get(key)) for key, one in wanted.items())
    waiting = 0
    names = {key: one.pod.name for key, one in wanted.items()} | {
        key: one.item.pod.name for key, one in present.items()
    }
    for key in sorted(names, key=lambda key: (_rank(wish, present.get(key)), names[key], key)):
        target, one = wanted.get(key), present.get(key)
        change = next_change(wish, target, one)
        if change is None:
            continue
        needs_slot = change.item is not None and not (one is not None and holds_slot(one))
        new = change.item is not None and target is not None and begins(wish, target, one)
        no_slot = needs_slot and (held >= limit or held_back(wish, target, one))
        no_room = new and wish.cap is not None and begun >= wish.cap
        if no_slot or no_room or (wish.failed and change.item is not None and held_back(wish, target, one)):
            waiting += 1
            continue
        held += needs_slot
        begun += new
        changes.append(change)
    states = tuple(
        _state(wish, wanted.get(key), present.get(key)) for key in sorted(names, key=lambda key: (names[key], key))
    )
    return Plan(tuple(changes), states, limit, held, waiting)


def pairs(wish: Wish, targets: Iterable[Target], there: Mapping[str, Placed]) -> dict[str, Target]:
    """Return the wanted pods by item id; one whose containers are down is wanted only if it was begun."""
    named = ((item_id(wish.live_patch.uid, one.pod.uid), one) for one in targets)
    return {key: one for key, one in named if one.containers or key in there}


def _rank(wish: Wish, placed: Placed | None) -> int:
    """What is begun is finished first, then abandoned bundles; else in the order of names, which people can follow."""
    if placed is None:
        return 3
    if placed.item.desired is Desired.REVERTED or placed.item.bundle.digest == wish.digest:
        return 0
    return 2 if placed.item.bundle.digest == wish.stable else 1


def _state(wish: Wish, target: Target | None, placed: Placed | None) -> PodState:
    pod = target.pod if target is not None else placed.item.pod if placed is not None else None
    if pod is None:
        raise ValueError("a pod is a target or has an item")
    blocked = target.blocked if target is not None and not is_current(wish, target, placed) else None
    standing = Standing.FAILED if blocked else _standing(wish, target, placed)
    return PodState(pod, standing, target is not None, placed, blocked)


def is_current(wish: Wish, target: Target | None, placed: Placed | None) -> bool:
    """Return whether the agent is done with the bundle that is wanted, in the containers that run now."""
    return (
        placed is not None
        and settled(placed)
        and placed.item.desired is Desired.APPLIED
        and (wish.bundle is None or placed.item.bundle.digest == wish.digest)
        and (target is None or placed.item.containers == target.containers)
    )


def _standing(wish: Wish, target: Target | None, placed: Placed | None) -> Standing:
    if placed is None:
        return Standing.PENDING
    if not settled(placed):
        return Standing.FAILED if broken(placed) or placed.silent else Standing.PENDING
    if not is_current(wish, target, placed):
        return Standing.PENDING
    applied = placed.report is not None and placed.report.phase is Phase.APPLIED
    return Standing.PATCHED if applied else Standing.NOT_APPLICABLE
