"""The status of a LivePatch from the state of its pods: counters, samples, conditions."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from podgraft_api.conditions import Condition, condition, merged
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
from podgraft_operator.rollout import BROKEN, Plan, PodState, Standing

AGENT_SILENT = "AgentNotAnswering"


@dataclass(frozen=True)
class Problem:
    """Why a LivePatch cannot go on now; goes into conditions and an Event. passing: it will by itself, presently."""

    reason: str
    message: str
    passing: bool = False


def summarize(
    plan: Plan,
    *,
    generation: int,
    before: LivePatchStatus,
    bundle: BundleInfo | None,
    problem: Problem | None,
    paused: bool = False,
    leaving: bool = False,
) -> LivePatchStatus:
    """Return the whole status; conditions keep their transition time where nothing changed."""
    bundle = bundle or before.bundle
    states = plan.states
    counts = _counts(states)
    threads = _threads(states)
    failures = tuple(failure for state in states for failure in _failures(state))
    stragglers = tuple(one for state in states for one in _stragglers(state))
    verdict = problem_verdict(problem) if problem else _verdict(plan, counts, failures, stragglers, paused)
    if leaving:
        verdict = Verdict("Reconciling", "Reverting", _leaving_message(states, failures))
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
        max_held_microseconds=max((one.max_held_microseconds for one in _reports(states)), default=0.0),
        failures=failures[:MAX_FAILURES] or None,
        failure_count=len(failures),
        stragglers=stragglers[:MAX_STRAGGLERS] or None,
        conditions=merged(before.conditions, verdict.conditions(generation)),
    )


@dataclass(frozen=True)
class Verdict:
    """Which one of the three conditions is true, and why."""

    true: str
    reason: str
    message: str

    def conditions(self, generation: int) -> Iterable[Condition]:
        """Return all three; Ready explains itself also when it is false, for kubectl shows it first."""
        for kind in ("Ready", "Reconciling", "Stalled"):
            mine = kind in {"Ready", self.true}
            yield condition(
                kind,
                status=kind == self.true,
                reason=self.reason if mine else ("Ready" if self.true == "Ready" else f"Not{kind}"),
                message=self.message if mine else "",
                generation=generation,
            )


def problem_verdict(problem: Problem) -> Verdict:
    """A problem of the LivePatch itself: stalled until it is solved, but for one that passes."""
    return Verdict("Reconciling" if problem.passing else "Stalled", problem.reason, problem.message)


def _verdict(
    plan: Plan,
    counts: PodCounts,
    failures: tuple[Failure, ...],
    stragglers: tuple[PodStraggler, ...],
    paused: bool,
) -> Verdict:
    begun = any(one.standing is Standing.PENDING and one.placed is not None for one in plan.states)
    moving = begun or any(one.item is not None for one in plan.changes)
    if failures and not moving and not (plan.waiting and plan.held < plan.limit and not paused):
        return Verdict("Stalled", failures[0].reason, _failure_message(plan, failures))
    if paused and plan.waiting and not moving:
        return Verdict("Reconciling", "Paused", f"paused; {plan.waiting} pods wait")
    progress = f"{counts.patched} of {counts.matched - counts.not_applicable} pods patched"
    if stragglers:
        return Verdict("Reconciling", "WaitingForThreads", f"{progress}; {_straggler_message(stragglers)}")
    if counts.pending or failures or moving:
        also = f", {counts.failed} failed" if counts.failed else ""
        return Verdict("Reconciling", "Progressing", progress + also)
    return _done(counts, progress)


def _done(counts: PodCounts, progress: str) -> Verdict:
    if not counts.matched:
        return Verdict("Ready", "NoPodsMatch", "no running pod matches the selector; pods that come are patched")
    if counts.not_applicable == counts.matched:
        return Verdict(
            "Ready",
            "NotApplicable",
            f"none of {counts.matched} pods runs a process that maps the patched build",
        )
    return Verdict("Ready", "Patched", progress)


def _counts(states: tuple[PodState, ...]) -> PodCounts:
    wanted = [one.standing for one in states if one.wanted]
    return PodCounts(
        matched=len(wanted),
        patched=wanted.count(Standing.PATCHED),
        pending=wanted.count(Standing.PENDING),
        failed=wanted.count(Standing.FAILED),
        not_applicable=wanted.count(Standing.NOT_APPLICABLE),
    )


def _reports(states: Iterable[PodState]) -> Iterator[ItemReport]:
    return (one.placed.report for one in states if one.placed is not None and one.placed.report is not None)


def _threads(states: tuple[PodState, ...]) -> ThreadCounts:
    reports = list(_reports(one for one in states if one.wanted))
    return ThreadCounts(
        total=sum(one.threads_total for one in reports), migrated=sum(one.threads_migrated for one in reports)
    )


def _failures(state: PodState) -> Iterator[Failure]:
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


def _failure_message(plan: Plan, failures: tuple[Failure, ...]) -> str:
    first = failures[0]
    where = f"pod {first.pod}" + (f", process {first.pid}" if first.pid is not None else "")
    more = f"; {len(failures) - 1} more" if len(failures) > 1 else ""
    waits = f"; {plan.waiting} pods wait behind (maxParallel {plan.limit})" if plan.waiting else ""
    return f"{where}: {first.message or first.reason}{more}{waits}"


def _straggler_message(stragglers: tuple[PodStraggler, ...]) -> str:
    one = stragglers[0]
    inside = f" in {one.function}" if one.function else ""
    call = f", waits in {one.syscall}" if one.syscall else ""
    more = f"; {len(stragglers) - 1} more" if len(stragglers) > 1 else ""
    return f"thread {one.tid} ({one.name}) of pod {one.pod}{inside}: {one.why}{call}{more}"


def _leaving_message(states: tuple[PodState, ...], failures: tuple[Failure, ...]) -> str:
    troubled = f"; {failures[0].pod}: {failures[0].reason}: {failures[0].message}" if failures else ""
    return f"{len(states)} pods are not yet back on the old code{troubled}"
