"""Turning points of a rollout: what of a change in a LivePatch's state is worth an Event; pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from podgraft_api.conditions import Condition
from podgraft_api.livepatch import LivePatchStatus
from podgraft_api.nodepatch import Desired, ItemReport, Phase
from podgraft_operator.rollout import PodState, Standing

NAMED_PODS = 5
# Reasons of a rollout that goes on as it should: its beginning is told, each step is not.
UNDER_WAY = frozenset({"Progressing", "WaitingForThreads", "WaitingForHealth"})
BACK = frozenset({Phase.REVERTED, Phase.NOT_APPLICABLE})
Mark = Literal["pending", "patched", "failed", "reverted", "notApplicable"]


@dataclass(frozen=True)
class Turn:
    """One Event in the words of events.k8s.io/v1. action: what the operator did or looked at."""

    kind: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str


def mark(state: PodState) -> Mark:
    """Return how a pod stands, with "reverted" told from "pending"."""
    placed = state.placed
    report = placed.report if placed is not None else None
    if placed is not None and placed.item.desired is Desired.REVERTED and report is not None and report.phase in BACK:
        return "reverted"
    if state.standing is Standing.PATCHED:
        return "patched"
    if state.standing is Standing.FAILED:
        return "failed"
    return "notApplicable" if state.standing is Standing.NOT_APPLICABLE else "pending"


def details(state: PodState) -> str:
    """Say of a failed pod why."""
    report = state.placed.report if state.placed is not None else None
    if report is None:
        return "AgentNotAnswering" if state.placed is not None and state.placed.silent else ""
    return ": ".join(filter(None, trouble(report)))


def trouble(report: ItemReport) -> tuple[str, str]:
    """Return reason and message of an item that is refused or failed: its own, or those of its worst process."""
    said = [(one.reason, one.message) for one in report.processes]
    for reason, message in [(report.reason, report.message), *said]:
        if reason:
            return reason, message or ""
    return report.phase.value, report.message or ""


def condition_turn(before: LivePatchStatus, after: LivePatchStatus) -> Turn | None:
    """Return the turn that the conditions tell: a rollout that begins, ends, stalls, waits for somebody, or None."""
    old, new = _true(before.conditions), _true(after.conditions)
    if new is None or (old is not None and (old.type, old.reason) == (new.type, new.reason)):
        return None
    note = new.message or new.reason
    if new.type == "Stalled":
        return Turn("Warning", new.reason, "Rollout", note)
    if new.type == "Reconciling" and new.reason in UNDER_WAY:
        if old is not None and old.type == "Reconciling" and old.reason in UNDER_WAY:
            return None
        anew = old is None or old.type == "Ready"
        return Turn("Normal", "RolloutBegan" if anew else "RolloutResumed", "Rollout", note)
    return Turn("Normal", new.reason, "Rollout", note)


def pods_turn(reached: Mark, pods: Mapping[str, str], states: Iterable[PodState]) -> Turn:
    """Return one turn for all pods (name -> detail) that have come to stand so."""
    there = list(states)
    total = len([one for one in there if one.wanted]) or len(there)
    names = sorted(pods)
    shown = [f"{name} ({pods[name]})" if pods[name] else name for name in names[:NAMED_PODS]]
    more = f" and {len(names) - NAMED_PODS} more" if len(names) > NAMED_PODS else ""
    what = f"{len(names)} of {total} pods {reached}: {', '.join(shown)}{more}"
    reason = {"patched": "PodsPatched", "failed": "PodsFailed", "reverted": "PodsReverted"}[reached]
    action = "Revert" if reached == "reverted" else "Patch"
    return Turn("Warning" if reached == "failed" else "Normal", reason, action, what)


def _true(conditions: Iterable[Condition]) -> Condition | None:
    return next((one for one in conditions if one.status == "True"), None)
