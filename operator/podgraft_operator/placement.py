"""One pod of a rollout: what it is, what was asked of its agent, what the agent said, and whether that holds a slot."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from podgraft_api.nodepatch import ContainerRef, Desired, Item, ItemReport, Phase, PodRef

SETTLED = {
    Desired.APPLIED: frozenset({Phase.APPLIED, Phase.NOT_APPLICABLE}),
    Desired.REVERTED: frozenset({Phase.REVERTED, Phase.NOT_APPLICABLE}),
}
BROKEN = frozenset({Phase.REFUSED, Phase.FAILED})


@dataclass(frozen=True)
class Target:
    """A pod that shall be patched, and its containers; none while they are down, between a crash and the restart.

    blocked: the other LivePatch that has, or is first to have, the same functions in this pod.
    """

    node: str
    pod: PodRef
    containers: tuple[ContainerRef, ...]
    ready: bool = True
    restarts: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    blocked: str | None = None


@dataclass(frozen=True)
class Placed:
    """An item in a NodePatch. report: only one that answers this version; silent: no word from the agent."""

    node: str
    item: Item
    report: ItemReport | None = None
    silent: bool = False


def settled(placed: Placed) -> bool:
    """Return whether the agent has done what the item asks for."""
    return placed.report is not None and placed.report.phase in SETTLED[placed.item.desired]


def broken(placed: Placed) -> bool:
    """Return whether the agent has said that it cannot do what the item asks for."""
    return placed.report is not None and placed.report.phase in BROKEN


def holds_slot(placed: Placed) -> bool:
    """Return whether an item counts against maxParallel."""
    if settled(placed):
        return False
    if broken(placed):
        return placed.item.desired is Desired.APPLIED
    return not placed.silent


def slots(max_parallel: int | str, matched: int) -> int:
    """Return how many pods may be in transition: a percentage is rounded up, and one always may."""
    return max(1, share(max_parallel, matched))


def share(pods: int | str, matched: int) -> int:
    """Return a number of pods: given as such, or as a percentage of the matched ones, rounded up."""
    return pods if isinstance(pods, int) else math.ceil(matched * int(pods.removesuffix("%")) / 100)
