"""Steps, pauses, failures: how the memory of a rollout moves. Pure: the clock is an argument.

The memory lies in the status of the LivePatch. What is decided here must be stored there before anything is done
about it (`decided` says whether there is something to store), or a restarted operator would forget a revert.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from podgraft_api.nodepatch import BundleRef
from podgraft_api.progress import RolloutFailure, RolloutStatus
from podgraft_api.strategy import Step, Strategy
from podgraft_operator.census import Census
from podgraft_operator.health import Measurement, confirmed, judge
from podgraft_operator.placement import share
from podgraft_operator.problem import Problem

DEADLINE = "ProgressDeadlineExceeded"
REVERT_REQUESTED = "RevertRequested"


@dataclass(frozen=True)
class Orders:
    """What the LivePatch says about its pace. bundle None: not known now. resume, revert: values of annotations."""

    bundle: BundleRef | None
    strategy: Strategy = field(default_factory=Strategy)
    paused: bool = False
    resume: str | None = None
    revert: str | None = None


def advance(
    memory: RolloutStatus | None, orders: Orders, census: Census, measured: Measurement | None, now: datetime
) -> RolloutStatus | None:
    """Return the memory as it must be now; None while no bundle was ever known."""
    if orders.bundle is not None:
        memory = _recognise(memory, orders, orders.bundle)
    if memory is None:
        return None
    memory = _obey(_not_ahead(memory, now), orders, census, now)
    if memory.failure is None and memory.withdrawn not in census.digests:
        memory = _set(memory, withdrawn=None)
    if orders.bundle is None or memory.complete:
        return memory
    if memory.failure is not None:
        return _failed(memory, memory.failure, orders, census)
    shut = judge(orders.strategy.health, census, memory.forgiven_restarts, measured)
    if shut is not None:
        return _fail(memory, shut, orders, now)
    if not orders.paused:
        memory = _step(memory, orders, census, measured, now)
    return _watch_the_clock(memory, orders, census, now)


def cap(memory: RolloutStatus, strategy: Strategy, matched: int) -> int | None:
    """Return how many pods may have been begun by now, None for any number."""
    if memory.complete or memory.step >= len(strategy.steps):
        return None
    reached = [one.pods for one in strategy.steps[: memory.step + 1] if one.pods is not None]
    return max((share(one, matched) for one in reached), default=0)


def pausing(memory: RolloutStatus, strategy: Strategy) -> bool:
    """Return whether the rollout stands in a pause step."""
    here = not memory.complete and memory.failure is None and memory.step < len(strategy.steps)
    return here and memory.pause_began is not None and strategy.steps[memory.step].pause is not None


def decided(before: RolloutStatus | None, after: RolloutStatus | None) -> bool:
    """Return whether something was decided that must be stored before it is acted upon."""
    moving = {"progressed_at": None, "done": 0, "matched": 0, "fulfilled_at": None}
    if before is None or after is None:
        return before is not after
    return before.model_copy(update=moving) != after.model_copy(update=moving)


def steps_hash(steps: tuple[Step, ...]) -> str:
    """Return a short text that changes when the steps do."""
    return hashlib.sha256(repr([one.wire() for one in steps]).encode()).hexdigest()[:16]


def _set(memory: RolloutStatus, **values: object) -> RolloutStatus:
    return memory.model_copy(update=values)


START = {"step": 0, "pause_began": None, "pause_until": None, "fulfilled_at": None, "progressed_at": None}


def _recognise(memory: RolloutStatus | None, orders: Orders, bundle: BundleRef) -> RolloutStatus:
    """Begin anew when the bundle or the steps are others; the bundle of the last complete rollout needs no steps."""
    steps = steps_hash(orders.strategy.steps)
    if memory is None:
        # Requests that are older than the memory were meant for somebody else: a restored or copied object.
        return RolloutStatus(
            digest=bundle.digest, steps=steps, handled_resume=orders.resume, handled_revert=orders.revert
        )
    if memory.digest != bundle.digest:
        taken_back = memory.digest if memory.failure is not None and memory.failure.reverting else memory.withdrawn
        return RolloutStatus(
            digest=bundle.digest,
            steps=steps,
            complete=memory.stable is not None and memory.stable.digest == bundle.digest,
            stable=memory.stable,
            withdrawn=None if taken_back == bundle.digest else taken_back,
            handled_resume=orders.resume,
            handled_revert=memory.handled_revert,
        )
    if memory.steps != steps:
        return _set(memory, steps=steps) if memory.complete else _set(memory, **START, steps=steps)
    return memory


def _not_ahead(memory: RolloutStatus, now: datetime) -> RolloutStatus:
    """Let a pause of the future, which was written before somebody set the clock back, begin now, as long as it was."""
    if memory.pause_began is None or _time(memory.pause_began) <= now:
        return memory
    length = _time(memory.pause_until) - _time(memory.pause_began) if memory.pause_until is not None else None
    return _set(memory, pause_began=_text(now), pause_until=_text(now + length) if length is not None else None)


def _obey(memory: RolloutStatus, orders: Orders, census: Census, now: datetime) -> RolloutStatus:
    """Do what annotations ask for; each value once."""
    if orders.revert is not None and orders.revert != memory.handled_revert:
        failure = RolloutFailure(reason=REVERT_REQUESTED, message="somebody asked for it", at=_text(now))
        return _withdraw(_set(memory, handled_revert=orders.revert, handled_resume=orders.resume, failure=failure))
    if orders.resume is None or orders.resume == memory.handled_resume:
        return memory
    memory = _set(memory, handled_resume=orders.resume)
    if memory.failure is not None and memory.failure.reverting:
        return _set(memory, **START, failure=None, withdrawn=None)
    if memory.failure is not None:
        return _set(memory, failure=None, forgiven_restarts=census.restarts, progressed_at=None, fulfilled_at=None)
    if memory.pause_began is not None and not _reached(memory.pause_until, now):
        return _set(memory, pause_until=_text(now))
    return memory


def _fail(
    memory: RolloutStatus, why: Problem, orders: Orders, now: datetime, *, everywhere: bool = False
) -> RolloutStatus:
    failure = RolloutFailure(reason=why.reason, message=why.message, at=_text(now), everywhere=everywhere)
    memory = _set(memory, failure=failure, progressed_at=None, fulfilled_at=None)
    return _withdraw(memory) if orders.strategy.on_failure == "Revert" else memory


def _withdraw(memory: RolloutStatus) -> RolloutStatus:
    """Take the bundle back, for good until somebody resumes or names another bundle."""
    if memory.failure is None:
        raise ValueError("nothing is withdrawn without a reason")
    stable = memory.stable if memory.stable is not None and memory.stable.digest != memory.digest else None
    failure = memory.failure.model_copy(update={"reverting": True})
    return _set(memory, failure=failure, complete=False, stable=stable, withdrawn=memory.digest, progressed_at=None)


def _failed(memory: RolloutStatus, failure: RolloutFailure, orders: Orders, census: Census) -> RolloutStatus:
    if failure.reverting:
        return memory
    if orders.strategy.on_failure == "Revert":
        return _withdraw(memory)
    if failure.reason == DEADLINE and census.matched and census.done == census.matched:
        # Late, but everywhere: there is nothing left to be held back.
        return _set(memory, failure=None)
    return memory


def _step(
    memory: RolloutStatus, orders: Orders, census: Census, measured: Measurement | None, now: datetime
) -> RolloutStatus:
    """Go on to the first step that is not fulfilled, or that no fresh answer of Prometheus confirms."""
    steps, health = orders.strategy.steps, orders.strategy.health
    while census.matched and not memory.complete:
        step = steps[memory.step] if memory.step < len(steps) else None
        if step is not None and step.pause is not None and memory.pause_began is None:
            seconds = step.pause.seconds
            until = _text(now + timedelta(seconds=seconds)) if seconds is not None else None
            memory = _set(memory, pause_began=_text(now), pause_until=until)
        if not _fulfilled(memory, step, census, now):
            return _set(memory, fulfilled_at=None)
        if health is not None and health.prometheus is not None:
            since = memory.fulfilled_at or _text(now)
            if not confirmed(health, census, measured, _time(since)):
                return _set(memory, fulfilled_at=since)
        if step is None:
            return _set(memory, complete=True, stable=orders.bundle, fulfilled_at=None, progressed_at=None)
        memory = _set(memory, **START | {"step": memory.step + 1})
    return memory


def _fulfilled(memory: RolloutStatus, step: Step | None, census: Census, now: datetime) -> bool:
    if step is None:
        return census.done >= census.matched
    if step.pods is not None:
        return census.done >= min(share(step.pods, census.matched), census.matched)
    return _reached(memory.pause_until, now)


def _watch_the_clock(memory: RolloutStatus, orders: Orders, census: Census, now: datetime) -> RolloutStatus:
    """Fail when pods were begun and none was done for too long; in a pause the clock stands."""
    if memory.complete:
        return memory
    if orders.paused or pausing(memory, orders.strategy) or not census.awaited:
        return _set(memory, progressed_at=None, done=census.done, matched=census.matched)
    moved = census.done > memory.done or census.matched != memory.matched
    if memory.progressed_at is None or moved or _time(memory.progressed_at) > now:
        return _set(memory, progressed_at=_text(now), done=census.done, matched=census.matched)
    seconds = orders.strategy.progress_deadline_seconds
    if now - _time(memory.progressed_at) <= timedelta(seconds=seconds):
        return memory
    message = f"{census.awaited} pods were begun, and none was done within {seconds} s"
    everywhere = memory.step >= len(orders.strategy.steps) and census.begun >= census.matched
    return _fail(memory, Problem(DEADLINE, message), orders, now, everywhere=everywhere)


def _reached(until: str | None, now: datetime) -> bool:
    return until is not None and now >= _time(until)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
