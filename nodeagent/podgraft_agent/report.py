"""The status of the NodePatch: one answer for each item, made of its processes."""

from collections.abc import Iterable

from podgraft_api.nodepatch import MAX_PROCESSES, Desired, Item, ItemReport, Phase, ProcessReport

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


def item_report(item: Item, processes: Iterable[ProcessReport], *, looked: bool) -> ItemReport:
    """Answer an item; until its processes have been looked for, all that can be said is Pending."""
    ordered = sorted(processes, key=lambda one: (TROUBLE_ORDER.get(one.phase, len(TROUBLE_ORDER)), one.pid))
    phase = item_phase(item.desired, (one.phase for one in ordered)) if looked else Phase.PENDING
    first = next((one for one in ordered if one.reason), None)
    return ItemReport(
        id=item.id,
        version=item.version,
        phase=phase,
        desired=item.desired.value,
        process_count=len(ordered),
        threads_total=sum(one.threads_total for one in ordered),
        threads_migrated=sum(one.threads_migrated for one in ordered),
        max_held_microseconds=max((one.max_held_microseconds for one in ordered), default=0.0),
        reason=first.reason if first is not None else None,
        message=first.message if first is not None else None,
        processes=tuple(ordered[:MAX_PROCESSES]),
    )
