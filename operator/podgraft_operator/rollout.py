"""The rollout as a pure function: what is wanted, what is placed, what agents reported -> the next changes.

No input or output and no memory: everything it needs lies in the resources, so a restarted operator
continues where the old one was killed. A pod in transition holds one of `maxParallel` slots. One that fails
to be patched keeps its slot, so that a bad patch stops by itself after maxParallel pods; one that fails to
be reverted, or whose node is silent, does not: nothing may hold up the others.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from podgraft_api.nodepatch import (
    BundleRef,
    ContainerRef,
    Desired,
    Item,
    ItemReport,
    LivePatchRef,
    Phase,
    PodRef,
    item_id,
)


@dataclass(frozen=True)
class Target:
    """A pod that shall be patched, and its containers."""

    node: str
    pod: PodRef
    containers: tuple[ContainerRef, ...]


@dataclass(frozen=True)
class Wish:
    """A LivePatch as the rollout sees it. bundle None: not known now, so what is placed stays as it is."""

    live_patch: LivePatchRef
    bundle: BundleRef | None = None
    paused: bool = False
    max_parallel: int | str = "25%"
    thread_deadline_seconds: int = 30
    leaving: Literal["Revert", "Keep"] | None = None


@dataclass(frozen=True)
class Placed:
    """An item in a NodePatch. report: only one that answers this version; silent: no word from the agent."""

    node: str
    item: Item
    report: ItemReport | None = None
    silent: bool = False


@dataclass(frozen=True)
class Change:
    """Set an item (item.version is filled in when it is written), or remove it."""

    node: str
    id: str
    item: Item | None


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


@dataclass(frozen=True)
class Plan:
    """What to write now, how every pod stands, slots held of how many, and how many pods wait for one."""

    changes: tuple[Change, ...]
    states: tuple[PodState, ...]
    limit: int
    held: int
    waiting: int


SETTLED = {
    Desired.APPLIED: frozenset({Phase.APPLIED, Phase.NOT_APPLICABLE}),
    Desired.REVERTED: frozenset({Phase.REVERTED, Phase.NOT_APPLICABLE}),
}
BROKEN = frozenset({Phase.REFUSED, Phase.FAILED})


def slots(max_parallel: int | str, matched: int) -> int:
    """Return how many pods may be in transition: a percentage is rounded up, and one always may."""
    if isinstance(max_parallel, int):
        return max(1, max_parallel)
    return max(1, math.ceil(matched * int(max_parallel.removesuffix("%")) / 100))


def settled(placed: Placed) -> bool:
    """Return whether the agent has done what the item asks for."""
    return placed.report is not None and placed.report.phase in SETTLED[placed.item.desired]


def holds_slot(placed: Placed) -> bool:
    """Return whether an item counts against maxParallel."""
    if settled(placed):
        return False
    if placed.report is not None and placed.report.phase in BROKEN:
        return placed.item.desired is Desired.APPLIED
    return not placed.silent


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
    wanted = {} if wish.leaving else {item_id(wish.live_patch.uid, one.pod.uid): one for one in targets}
    there = {one.item.id: one for one in placed}
    limit = slots(wish.max_parallel, len(wanted) or len(there))
    gone = {key for key, one in there.items() if one.item.pod.uid not in alive or wish.leaving == "Keep"}
    changes = [Change(there[key].node, key, None) for key in sorted(gone)]
    present = {key: one for key, one in there.items() if key not in gone}
    held = sum(holds_slot(one) for one in present.values())
    waiting = 0
    names = {key: one.pod.name for key, one in wanted.items()} | {
        key: one.item.pod.name for key, one in present.items()
    }
    # What is begun is finished first; else in the order of names, which people can follow.
    for key in sorted(names, key=lambda key: (key not in present, names[key], key)):
        change = _next(wish, wanted.get(key), present.get(key))
        if change is None:
            continue
        needs_slot = change.item is not None and not (key in present and holds_slot(present[key]))
        if needs_slot and (held >= limit or (wish.paused and not wish.leaving)):
            waiting += 1
            continue
        held += needs_slot
        changes.append(change)
    states = tuple(_state(wish, wanted.get(key), present.get(key)) for key in sorted(names, key=names.__getitem__))
    return Plan(tuple(changes), states, limit, held, waiting)


def _next(wish: Wish, target: Target | None, placed: Placed | None) -> Change | None:
    """Return the change that brings one pod a step nearer to what is wanted, or None."""
    if placed is None:
        return _place(wish, target) if target is not None and wish.bundle is not None else None
    if wish.bundle is None and not wish.leaving:
        return None
    item = placed.item
    if target is None or (wish.bundle is not None and item.bundle.digest != wish.bundle.digest):
        if item.desired is Desired.APPLIED:
            back = item.model_copy(update={"desired": Desired.REVERTED})
            return Change(placed.node, item.id, back)
        if not settled(placed):
            return None
        # The old code runs again: make room, or go on with the other bundle.
        return Change(placed.node, item.id, None) if target is None else _place(wish, target)
    return _refresh(wish, target, placed)


def _place(wish: Wish, target: Target | None) -> Change | None:
    if target is None or wish.bundle is None:
        return None
    item = Item(
        id=item_id(wish.live_patch.uid, target.pod.uid),
        version=0,
        desired=Desired.APPLIED,
        live_patch=wish.live_patch,
        bundle=wish.bundle,
        pod=target.pod,
        containers=target.containers,
        thread_deadline_seconds=wish.thread_deadline_seconds,
    )
    return Change(target.node, item.id, item)


def _refresh(wish: Wish, target: Target, placed: Placed) -> Change | None:
    """Bring an item of the right bundle up to date: restarted containers, a revert that was called off."""
    item = placed.item
    same_work = item.desired is Desired.APPLIED and item.containers == target.containers
    # A new deadline is for threads that still migrate; who is done is left in peace.
    same_speed = settled(placed) or item.thread_deadline_seconds == wish.thread_deadline_seconds
    return None if same_work and same_speed else _place(wish, target)


def _state(wish: Wish, target: Target | None, placed: Placed | None) -> PodState:
    pod = target.pod if target is not None else placed.item.pod if placed is not None else None
    if pod is None:
        raise ValueError("a pod is a target or has an item")
    return PodState(pod, _standing(wish, target, placed), target is not None, placed)


def _standing(wish: Wish, target: Target | None, placed: Placed | None) -> Standing:
    if placed is None:
        return Standing.PENDING
    if not settled(placed):
        broken = placed.report is not None and placed.report.phase in BROKEN
        return Standing.FAILED if broken or placed.silent else Standing.PENDING
    current = wish.bundle is None or placed.item.bundle.digest == wish.bundle.digest
    if placed.item.desired is Desired.REVERTED or not current:
        return Standing.PENDING
    if target is not None and placed.item.containers != target.containers:
        return Standing.PENDING
    applied = placed.report is not None and placed.report.phase is Phase.APPLIED
    return Standing.PATCHED if applied else Standing.NOT_APPLICABLE
