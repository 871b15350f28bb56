"""The status of the NodePatch: one answer for each item, made of its processes."""

from collections.abc import Iterable
from dataclasses import dataclass

from podgraft_api.nodepatch import MAX_PROCESSES, Desired, Item, ItemReport, Phase, ProcessReport
from podgraft_bundle.errors import HINTS, Reason

DONE = {Desired.APPLIED: Phase.APPLIED, Desired.REVERTED: Phase.REVERTED}
MOVING = (Phase.APPLYING, Phase.REVERTING, Phase.PENDING)
BROKEN = (Phase.FAILED, Phase.REFUSED)
# What a reader of a capped sample must see first.
TROUBLE_ORDER = {phase: rank for rank, phase in enumerate((*BROKEN, *MOVING))}


def item_phase(desired: Desired, phases: Iterable[Phase]) -> Phase:
    """Return how an item stands: on the way while any process is, else broken if any is, else done."""
    there = set(phases)
    for phase in (*MOVING, *BROKEN):
        if phase in there:
            return phase
    if not there:
        return Phase.NOT_APPLICABLE
    return DONE[desired] if there == {DONE[desired]} else Phase.PENDING


@dataclass(frozen=True)
class Unseen:
    """A container of which no process is seen on the node. overdue: for too long to be just starting or ending."""

    container: str
    overdue: bool


def item_report(
    item: Item, processes: Iterable[ProcessReport], *, looked: bool, unseen: Unseen | None = None
) -> ItemReport:
    """Answer an item; until its processes have been looked for, all that can be said is Pending."""
    ordered = sorted(processes, key=lambda one: (TROUBLE_ORDER.get(one.phase, len(TROUBLE_ORDER)), one.pid))
    phase = item_phase(item.desired, (one.phase for one in ordered)) if looked else Phase.PENDING
    first = next((one for one in ordered if one.reason), None)
    reason, message = (first.reason, first.message) if first is not None else (None, None)
    if phase is Phase.NOT_APPLICABLE:
        message = f"no process in these containers maps build {item.bundle.build_id}: there is nothing to patch"
    if unseen is not None and item.desired is Desired.APPLIED and phase in {Phase.NOT_APPLICABLE, Phase.APPLIED}:
        # To call this done, or not applicable, would report a fix that nobody has looked for.
        phase, reason = (Phase.FAILED if unseen.overdue else Phase.PENDING), Reason.CONTAINER_NOT_VISIBLE
        message = f"no process of container {unseen.container} is seen on this node; {HINTS[reason]}"
    return ItemReport(
        id=item.id,
        version=item.version,
        phase=phase,
        desired=item.desired.value,
        process_count=len(ordered),
        threads_total=sum(one.threads_total for one in ordered),
        threads_migrated=sum(one.threads_migrated for one in ordered),
        max_held_microseconds=max((one.max_held_microseconds for one in ordered), default=0.0),
        reason=reason,
        message=message,
        processes=tuple(ordered[:MAX_PROCESSES]),
    )
