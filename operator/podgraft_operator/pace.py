"""From a LivePatch and the memory of its rollout to what is asked for now."""

from dataclasses import replace
from typing import Any

from podgraft_api.livepatch import LivePatchSpec
from podgraft_api.nodepatch import BundleRef, LivePatchRef
from podgraft_api.progress import RESUME, REVERT, RolloutStatus
from podgraft_operator.change import Wish
from podgraft_operator.progress import Orders, cap


def orders(body: dict[str, Any], spec: LivePatchSpec | None, bundle: BundleRef | None) -> Orders:
    """Return what a LivePatch says about its pace; spec None: it cannot be understood."""
    asked = body["metadata"].get("annotations") or {}
    resume, revert = asked.get(RESUME) or None, asked.get(REVERT) or None
    if spec is None:
        return Orders(None, resume=resume, revert=revert)
    return Orders(bundle, spec.strategy, paused=spec.paused, resume=resume, revert=revert)


def wish(
    ref: LivePatchRef,
    spec: LivePatchSpec | None,
    bundle: BundleRef | None,
    memory: RolloutStatus | None,
    matched: int = 0,
) -> Wish:
    """Return what the plan is made for; matched: pods that can be patched, which percentages of steps refer to."""
    taken_back = memory.withdrawn if memory is not None else None
    if spec is None:
        return Wish(ref, paused=True, withdrawn=taken_back)
    common = Wish(
        ref,
        paused=spec.paused,
        max_parallel=spec.strategy.max_parallel,
        thread_deadline_seconds=spec.strategy.thread_deadline_seconds,
        points=spec.points,
        stable=memory.stable.digest if memory is not None and memory.stable is not None else None,
        withdrawn=taken_back,
        baselines=spec.strategy.health is not None,
    )
    if memory is not None and memory.failure is not None and memory.failure.reverting:
        return replace(common, bundle=memory.stable, reverting=memory.stable is None)
    if memory is None or bundle is None:
        return replace(common, bundle=bundle, paused=True)
    failed = memory.failure is not None and not memory.failure.everywhere
    return replace(common, bundle=bundle, failed=failed, cap=cap(memory, spec.strategy, matched))
