"""The next change of one pod: towards the bundle that is wanted, or back to the old code."""

from dataclasses import dataclass
from typing import Literal

from podgraft_api.nodepatch import Baseline, BundleRef, Desired, Item, LivePatchRef, Phase, item_id
from podgraft_operator.placement import Placed, Target, settled


@dataclass(frozen=True)
class Wish:
    """A LivePatch as the rollout sees it. bundle None: not known now, so what is placed stays as it is.

    cap: pods that may have been begun, None for any number. stable: digest of the bundle before. withdrawn: digest
    of a bundle that is taken back, whatever the cap and the pause. reverting: take back every bundle. failed: no
    process gets the bundle any more, not even one that has already made room for it.
    """

    live_patch: LivePatchRef
    bundle: BundleRef | None = None
    paused: bool = False
    max_parallel: int | str = "25%"
    thread_deadline_seconds: int = 30
    points: tuple[str, ...] = ()
    leaving: Literal["Revert", "Keep"] | None = None
    cap: int | None = None
    stable: str | None = None
    withdrawn: str | None = None
    reverting: bool = False
    failed: bool = False
    baselines: bool = False

    @property
    def digest(self) -> str | None:
        """The bundle that is wanted."""
        return self.bundle.digest if self.bundle is not None else None

    @property
    def known(self) -> bool:
        """Whether it is known what is wanted; else what is placed stays."""
        return self.bundle is not None or self.leaving is not None or self.reverting


@dataclass(frozen=True)
class Change:
    """Set an item (item.version is filled in when it is written), or remove it."""

    node: str
    id: str
    item: Item | None


def next_change(wish: Wish, target: Target | None, placed: Placed | None) -> Change | None:
    """Return the change that brings one pod a step nearer to what is wanted, or None."""
    if placed is None:
        return _place(wish, target, None)
    if taken_back(wish, target, placed) and placed.item.desired is Desired.APPLIED:
        return _revert(placed)
    if not wish.known:
        return None
    if target is None or wish.reverting:
        # The old code runs again: make room.
        return Change(placed.node, placed.item.id, None) if settled(placed) else None
    if placed.item.bundle.digest == wish.digest:
        return _refresh(wish, target, placed)
    return _exchange(wish, target, placed)


def taken_back(wish: Wish, target: Target | None, placed: Placed) -> bool:
    """Return whether a pod has to get its old code back, without another bundle in view."""
    return placed.item.bundle.digest == wish.withdrawn or (wish.known and (target is None or wish.reverting))


def begun_for(wish: Wish, placed: Placed | None) -> bool:
    """Return whether a wanted pod has, gets, or makes room for the bundle that is rolled out."""
    if placed is None:
        return False
    digest = placed.item.bundle.digest
    if placed.item.desired is Desired.APPLIED:
        return digest == wish.digest
    return digest not in {wish.digest, wish.withdrawn}


def counts_as_begun(wish: Wish, target: Target, placed: Placed | None) -> bool:
    """Return whether a pod uses up the step's number: silent nodes and other builds do not, nor pods of others."""
    if placed is None or target.blocked or not begun_for(wish, placed):
        return False
    return not (placed.silent and not settled(placed)) and not _other_build(target, placed)


def _other_build(target: Target, placed: Placed) -> bool:
    """Return whether the containers that run now have nothing to patch; one that is down may have crashed instead."""
    nothing = placed.report is not None and placed.report.phase is Phase.NOT_APPLICABLE
    return nothing and placed.item.desired is Desired.APPLIED and placed.item.containers == target.containers


def begins(wish: Wish, target: Target, placed: Placed | None) -> bool:
    """Return whether a change begins a pod, and not just goes on with one or takes a withdrawn bundle back."""
    back = placed is not None and placed.item.desired is Desired.APPLIED and taken_back(wish, target, placed)
    return not back and not begun_for(wish, placed)


def held_back(wish: Wish, target: Target | None, placed: Placed | None) -> bool:
    """Return whether a pause or a failure holds a change back: never the way back; a pause not what is half done."""
    if not (wish.paused or wish.failed) or wish.leaving:
        return False
    if placed is None:
        return True
    applied = placed.item.desired is Desired.APPLIED
    if target is None or (applied and taken_back(wish, target, placed)):
        return False
    return wish.failed or applied or placed.item.bundle.digest == wish.withdrawn


def _revert(placed: Placed) -> Change:
    back = placed.item.model_copy(update={"desired": Desired.REVERTED})
    return Change(placed.node, back.id, back)


def _place(wish: Wish, target: Target | None, before: Placed | None) -> Change | None:
    """Ask for the bundle in a pod; what was known of it when it was begun stays known."""
    if target is None or wish.bundle is None or wish.reverting or not target.containers:
        return None
    same = before is not None and before.item.desired is Desired.APPLIED and begun_for(wish, before)
    if target.blocked and not same:
        return None
    baseline = Baseline(ready=target.ready, restarts=target.restarts) if wish.baselines else None
    if before is not None and same:
        baseline = before.item.baseline
    item = Item(
        id=item_id(wish.live_patch.uid, target.pod.uid),
        version=0,
        desired=Desired.APPLIED,
        live_patch=wish.live_patch,
        bundle=wish.bundle,
        pod=target.pod,
        containers=target.containers,
        thread_deadline_seconds=wish.thread_deadline_seconds,
        points=wish.points,
        baseline=baseline,
    )
    return Change(target.node, item.id, item)


def _refresh(wish: Wish, target: Target, placed: Placed) -> Change | None:
    """Bring an item of the right bundle up to date: restarted containers, a revert that was called off."""
    item = placed.item
    same_work = item.desired is Desired.APPLIED and item.containers == target.containers
    # A new deadline and new points are for threads that still migrate; who is done is left in peace.
    same_way = (item.thread_deadline_seconds, item.points) == (wish.thread_deadline_seconds, wish.points)
    return None if same_work and (settled(placed) or same_way) else _place(wish, target, placed)


def _exchange(wish: Wish, target: Target, placed: Placed) -> Change | None:
    """Ask for our bundle where the other one is out, or is in and replaced by ours; else take the other one back."""
    if placed.item.desired is Desired.REVERTED:
        return _place(wish, target, placed) if settled(placed) else None
    if target.blocked or not target.containers:
        return None
    return _place(wish, target, placed) if _replaces(wish, target, placed) else _revert(placed)


def _replaces(wish: Wish, target: Target, placed: Placed) -> bool:
    """Return whether our bundle takes the place of the other one, so that the old code does not run in between."""
    mine, other = wish.bundle, placed.item.bundle
    if mine is None or mine.build_id != other.build_id or placed.item.containers != target.containers:
        return False
    return settled(placed) and other.name in mine.replaces
