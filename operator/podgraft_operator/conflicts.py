"""Two LivePatches that patch the same functions in one pod: who goes first, and who waits.

The one whose patch is asked for in the pod already has it. Where neither is, a bundle that replaces the other's goes
first, else the older LivePatch. The engine refuses a second patch of a function all the same (ConflictingPatch): the
rule is for an order that people can follow, not for safety.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from podgraft_api.livepatch import LivePatchSpec
from podgraft_api.nodepatch import ContainerRef, Desired
from podgraft_operator.bundles import Resolved
from podgraft_operator.placement import Placed, Target, settled
from podgraft_operator.targets import matches


@dataclass(frozen=True)
class Claim:
    """What one LivePatch patches, and where; wants: it is not taken back."""

    uid: str
    name: str
    created: str
    spec: LivePatchSpec
    bundle: Resolved
    wants: bool = True

    @property
    def age(self) -> tuple[str, str]:
        """Older ones come first; of one second, by name."""
        return (self.created, self.name)


def claim(body: dict[str, Any], spec: LivePatchSpec, bundle: Resolved, *, wants: bool) -> Claim:
    """Return the claim of a LivePatch."""
    meta = body["metadata"]
    return Claim(meta["uid"], meta["name"], meta["creationTimestamp"], spec, bundle, wants)


def clash(one: Resolved, other: Resolved) -> bool:
    """Return whether two bundles cannot be in one process: a function or a name in common, or replaced by name."""
    if one.ref.digest == other.ref.digest or one.ref.build_id != other.ref.build_id:
        return False
    named = one.ref.name in other.ref.names or other.ref.name in one.ref.names
    return named or bool(one.functions & other.functions)


def goes_first(one: Claim, other: Claim) -> bool:
    """Return whether `one` comes before `other` where neither is in a pod."""
    replaces, replaced = _replaces(one, other), _replaces(other, one)
    return replaces if replaces != replaced else one.age < other.age


def _replaces(one: Claim, other: Claim) -> bool:
    return other.bundle.ref.name in one.bundle.ref.replaces


def arbitrate(
    mine: Claim, others: Iterable[Claim], targets: Iterable[Target], neighbours: Callable[[Target], Iterable[Placed]]
) -> list[Target]:
    """Return the targets, those marked as blocked that another LivePatch of the namespace has or comes first for.

    Args:
        mine: the claim of the LivePatch that is looked at.
        others: the claims of the others.
        targets: the pods of mine, with their labels.
        neighbours: returns the items of all LivePatches in a pod.
    """
    rivals = {one.uid: one for one in others if one.uid != mine.uid and clash(mine.bundle, one.bundle)}
    return [replace(one, blocked=_blocker(mine, rivals, one, neighbours)) for one in targets] if rivals else [*targets]


def _blocker(
    mine: Claim, rivals: dict[str, Claim], target: Target, neighbours: Callable[[Target], Iterable[Placed]]
) -> str | None:
    there = list(neighbours(target))
    if any(_has(one, mine) and one.item.desired is Desired.APPLIED for one in there):
        return None
    for one in there:
        rival = rivals.get(one.item.live_patch.uid)
        done = one.item.desired is Desired.REVERTED and settled(one)
        if rival is not None and _has(one, rival) and not done and _meet(target.containers, one.item.containers):
            return rival.name
    first = [one for one in rivals.values() if one.wants and goes_first(one, mine) and _selects(one, target)]
    return min(first, key=lambda one: one.age).name if first else None


def _has(placed: Placed, one: Claim) -> bool:
    item = placed.item
    return item.live_patch.uid == one.uid and item.bundle.digest == one.bundle.ref.digest


def _meet(mine: Iterable[ContainerRef], theirs: Iterable[ContainerRef]) -> bool:
    return bool({one.id for one in mine} & {one.id for one in theirs})


def _selects(one: Claim, target: Target) -> bool:
    names = one.spec.containers
    return matches(one.spec.selector, target.labels) and any(
        not names or container.name in names for container in target.containers
    )
