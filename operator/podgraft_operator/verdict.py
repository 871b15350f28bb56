"""Which of Ready, Reconciling and Stalled is true, and in which words."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from podgraft_api.conditions import Condition, condition
from podgraft_api.livepatch import Failure, PodCounts, PodStraggler
from podgraft_api.progress import RESUME, RolloutFailure, RolloutStatus
from podgraft_api.strategy import Strategy
from podgraft_operator.problem import Problem
from podgraft_operator.progress import pausing
from podgraft_operator.rollout import Plan, PodState, Standing

RESUME_HINT = f"set the annotation {RESUME} to go on"


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


@dataclass(frozen=True)
class Scene:
    """All that a verdict is made of."""

    plan: Plan
    counts: PodCounts
    failures: tuple[Failure, ...]
    stragglers: tuple[PodStraggler, ...]
    rollout: RolloutStatus | None = None
    strategy: Strategy = field(default_factory=Strategy)
    paused: bool = False

    @property
    def moving(self) -> bool:
        """Return whether anything will happen without anybody's doing."""
        begun = any(one.standing is Standing.PENDING and one.placed is not None for one in self.plan.states)
        return begun or any(one.item is not None for one in self.plan.changes)

    @property
    def unfinished(self) -> bool:
        """Return whether there are pods to patch and the rollout has not come to its end."""
        return self.rollout is not None and not self.rollout.complete and self.applicable > 0

    @property
    def applicable(self) -> int:
        """Pods that run the build that is patched, as far as is known."""
        return self.counts.matched - self.counts.not_applicable

    @property
    def progress(self) -> str:
        """How far the rollout is, in words."""
        steps, rollout = self.strategy.steps, self.rollout
        at = f"step {rollout.step + 1} of {len(steps)}; " if rollout is not None and rollout.step < len(steps) else ""
        finished = rollout is not None and rollout.complete
        return f"{'' if finished else at}{self.counts.patched} of {self.applicable} pods patched"


def problem_verdict(problem: Problem) -> Verdict:
    """A problem of the LivePatch itself: stalled until it is solved, but for one that passes."""
    return Verdict("Reconciling" if problem.passing else "Stalled", problem.reason, problem.message)


def leaving_verdict(states: tuple[PodState, ...], failures: tuple[Failure, ...]) -> Verdict:
    """A LivePatch that is being deleted."""
    troubled = f"; {_trouble(failures[0])}" if failures else ""
    return Verdict("Reconciling", "Reverting", f"{len(states)} pods are not yet back on the old code{troubled}")


def verdict(scene: Scene) -> Verdict:
    """Judge a rollout: a failed one is stalled, one that waits for time, threads or people is not."""
    failure = scene.rollout.failure if scene.rollout is not None else None
    if failure is not None:
        return _failed(scene, failure)
    if scene.rollout is not None and not scene.paused and pausing(scene.rollout, scene.strategy):
        return Verdict("Reconciling", "StepPaused", f"{scene.progress}; {_pause(scene.rollout)}{_troubles(scene)}")
    if scene.failures and not scene.moving:
        return Verdict("Stalled", scene.failures[0].reason, _failure_message(scene.plan, scene.failures))
    if scene.paused and not scene.moving and (scene.plan.waiting or scene.unfinished):
        return Verdict("Reconciling", "Paused", f"paused; {scene.plan.waiting} pods wait")
    busy = scene.stragglers or scene.counts.pending or scene.failures or scene.moving or scene.unfinished
    return _under_way(scene) if busy else _done(scene)


def _failed(scene: Scene, failure: RolloutFailure) -> Verdict:
    if failure.reverting and scene.moving:
        back = sum(one.placed is not None and one.standing is not Standing.PATCHED for one in scene.plan.states)
        why = f"{failure.reason}: {failure.message}"
        return Verdict("Reconciling", "Reverting", f"{why}; {back} pods are not yet back{_troubles(scene)}")
    kept = f"what is patched stays so, nothing more is begun; {RESUME_HINT}"
    if failure.reverting:
        kept = f"reverted; {RESUME_HINT}"
    elif failure.everywhere:
        kept = scene.progress
    waits = f"; {_straggler_message(scene.stragglers)}" if scene.stragglers else ""
    return Verdict("Stalled", failure.reason, f"{failure.message}; {kept}{waits}{_troubles(scene)}")


def _under_way(scene: Scene) -> Verdict:
    if scene.stragglers:
        waits = _straggler_message(scene.stragglers)
        return Verdict("Reconciling", "WaitingForThreads", f"{scene.progress}; {waits}")
    if scene.rollout is not None and scene.rollout.fulfilled_at is not None:
        return Verdict("Reconciling", "WaitingForHealth", f"{scene.progress}; waiting for an answer of Prometheus")
    also = f", {scene.counts.failed} failed" if scene.counts.failed else ""
    return Verdict("Reconciling", "Progressing", scene.progress + also)


def _done(scene: Scene) -> Verdict:
    matched = scene.counts.matched
    if not matched:
        return Verdict("Ready", "NoPodsMatch", "no running pod matches the selector; pods that come are patched")
    if scene.counts.not_applicable == matched:
        message = f"none of {matched} pods runs a process that maps the patched build"
        return Verdict("Ready", "NotApplicable", message)
    return Verdict("Ready", "Patched", scene.progress)


def _pause(rollout: RolloutStatus) -> str:
    if rollout.pause_until is None:
        return f"paused until somebody resumes: {RESUME_HINT}"
    return f"paused until {rollout.pause_until}"


def _trouble(failure: Failure) -> str:
    return f"{failure.pod}: {failure.reason}: {failure.message}"


def _troubles(scene: Scene) -> str:
    if not scene.failures:
        return ""
    more = f"; {len(scene.failures) - 1} more" if len(scene.failures) > 1 else ""
    return f"; {_trouble(scene.failures[0])}{more}"


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
    return f"{one.who} of pod {one.pod}{inside}: {one.why}{call}{more}"
