"""The status of a LivePatch from the state of its pods: counters, samples, conditions."""

from collections.abc import Iterable, Iterator

from podgraft_api.conditions import merged
from podgraft_api.livepatch import (
    MAX_FAILURES,
    MAX_STRAGGLERS,
    BundleInfo,
    Failure,
    LivePatchStatus,
    PodCounts,
    PodStraggler,
    Summary,
    ThreadCounts,
)
from podgraft_api.nodepatch import ItemReport
from podgraft_api.progress import RolloutStatus
from podgraft_api.strategy import Strategy
from podgraft_operator.placement import BROKEN
from podgraft_operator.problem import Problem
from podgraft_operator.rollout import Plan, PodState, Standing
from podgraft_operator.verdict import Scene, leaving_verdict, problem_verdict, verdict

AGENT_SILENT = "AgentNotAnswering"
CONFLICT = "Conflict"


def summarize(
    plan: Plan,
    *,
    generation: int,
    before: LivePatchStatus,
    bundle: BundleInfo | None,
    problem: Problem | None = None,
    rollout: RolloutStatus | None = None,
    strategy: Strategy | None = None,
    paused: bool = False,
    leaving: bool = False,
) -> LivePatchStatus:
    """Return the whole status; conditions keep their transition time where nothing changed."""
    bundle = bundle or before.bundle
    states = plan.states
    if leaving:
        counts, threads = _left(states, before.pods), _threads(states)
    else:
        counts = _counts(states, taken_back=bool(rollout and rollout.failure and rollout.failure.reverting))
        threads = _threads(one for one in states if one.wanted)
    failures = tuple(failure for state in states for failure in _failures(state))
    stragglers = tuple(one for state in states for one in _stragglers(state))
    if leaving:
        judged = leaving_verdict(states, failures)
    elif problem is not None:
        judged = problem_verdict(problem)
    else:
        judged = verdict(Scene(plan, counts, failures, stragglers, rollout, strategy or Strategy(), paused))
    return LivePatchStatus(
        observed_generation=generation,
        bundle=bundle,
        pods=counts,
        threads=threads,
        summary=Summary(
            cve=",".join(bundle.cves) if bundle else "",
            patched=f"{counts.patched}/{counts.matched - counts.not_applicable}",
            threads=f"{threads.migrated}/{threads.total}",
        ),
        rollout=rollout,
        max_held_microseconds=max((one.max_held_microseconds for one in _reports(states)), default=0.0),
        failures=failures[:MAX_FAILURES] or None,
        failure_count=len(failures),
        stragglers=stragglers[:MAX_STRAGGLERS] or None,
        conditions=merged(before.conditions, judged.conditions(generation)),
    )


def _counts(states: tuple[PodState, ...], *, taken_back: bool) -> PodCounts:
    """Count the wanted pods; while the bundle is taken back, none is patched with it, whatever runs there instead."""
    wanted = [one.standing for one in states if one.wanted]
    patched = wanted.count(Standing.PATCHED)
    return PodCounts(
        matched=len(wanted),
        patched=0 if taken_back else patched,
        pending=wanted.count(Standing.PENDING) + (patched if taken_back else 0),
        failed=wanted.count(Standing.FAILED),
        not_applicable=wanted.count(Standing.NOT_APPLICABLE),
    )


def _left(states: tuple[PodState, ...], before: PodCounts | None) -> PodCounts:
    """Count down a deletion: the pods that are not yet back, of all that there were when it began."""
    failed = sum(one.standing is Standing.FAILED for one in states)
    known = before.matched - before.not_applicable if before is not None else 0
    return PodCounts(matched=max(known, len(states)), patched=len(states) - failed, failed=failed)


def _reports(states: Iterable[PodState]) -> Iterator[ItemReport]:
    return (one.placed.report for one in states if one.placed is not None and one.placed.report is not None)


def _threads(states: Iterable[PodState]) -> ThreadCounts:
    reports = list(_reports(states))
    return ThreadCounts(
        total=sum(one.threads_total for one in reports), migrated=sum(one.threads_migrated for one in reports)
    )


def _failures(state: PodState) -> Iterator[Failure]:
    if state.blocked is not None:
        message = f"LivePatch {state.blocked} patches the same functions in this pod; patched when that one is gone"
        yield Failure(pod=state.pod.name, reason=CONFLICT, message=message)
        return
    if state.standing is not Standing.FAILED or state.placed is None:
        return
    pod, report = state.pod.name, state.placed.report
    if state.placed.silent and (report is None or report.phase not in BROKEN):
        yield Failure(pod=pod, reason=AGENT_SILENT, message=f"the agent of node {state.placed.node} does not answer")
        return
    if report is None:
        return
    broken = [one for one in report.processes if one.phase in BROKEN]
    for one in broken:
        yield Failure(
            pod=pod,
            container=one.container,
            pid=one.pid,
            reason=one.reason or one.phase.value,
            message=one.message or "",
        )
    if not broken:
        yield Failure(pod=pod, reason=report.reason or report.phase.value, message=report.message or "")


def _stragglers(state: PodState) -> Iterator[PodStraggler]:
    report = state.placed.report if state.placed is not None else None
    for process in report.processes if report is not None else ():
        for one in process.stragglers or ():
            yield PodStraggler(pod=state.pod.name, container=process.container, pid=process.pid, **one.model_dump())
