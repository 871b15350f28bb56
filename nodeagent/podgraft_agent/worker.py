"""One process and one item: engine runs until what is asked is true, with back-off, and the report of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog

from podgraft_agent import metrics
from podgraft_agent.engine import Outcome
from podgraft_agent.finder import Found
from podgraft_agent.progress import Progress
from podgraft_api.nodepatch import BundleRef, Desired, Phase
from podgraft_bundle.errors import ExitCode, PodgraftError, Reason, Refusal
from podgraft_bundle.protocol import Event, Failed, HookRan, Refused, Request
from podgraft_kube.client import UNAVAILABLE, ApiError

FIRST_RETRY_SECONDS = 1.0
# Threads left behind may leave at any time; a refusal seldom heals without a human.
MAX_RETRY_SECONDS = {ExitCode.DEADLINE: 15.0}
# A process may have replaced itself, or lost its patch with an unloaded library: the process is asked again.
LOOK_AGAIN_SECONDS = 300.0
LONGEST_RUN_SECONDS = 30.0
MAX_TROUBLE_SECONDS = 120.0
OPS: dict[Desired, Literal["apply", "revert"]] = {Desired.APPLIED: "apply", Desired.REVERTED: "revert"}
GONE = frozenset({Reason.NO_SUCH_PROCESS, Reason.PROCESS_EXITED, Reason.MODULE_NOT_MAPPED})

log = structlog.get_logger(__name__)
Engine = Callable[[Request, Callable[[Event], None]], Awaitable[Outcome]]


@dataclass(frozen=True)
class Goal:
    """What shall be true of the process."""

    desired: Desired
    bundle: BundleRef
    deadline: float
    points: tuple[str, ...] = ()


@dataclass
class Tools:
    """What all workers of a node share."""

    run: Engine
    bundle: Callable[[BundleRef], Awaitable[Path]]
    changed: Callable[[], None]
    slots: asyncio.Semaphore
    locks: dict[int, asyncio.Lock] = field(default_factory=dict)


class Worker:
    """Drives one process to its goal; the goal may change at any time, the engine run under way is finished."""

    def __init__(self, found: Found, goal: Goal, progress: Progress, tools: Tools, *, look_first: bool) -> None:
        self.found, self.goal, self.progress = found, goal, progress
        self._tools = tools
        self._look_first = look_first
        self._poked = asyncio.Event()
        self._withdrawn = False
        self._failures = 0

    def aim(self, goal: Goal) -> None:
        """Set the goal; a new one is begun at once."""
        if goal != self.goal:
            self.goal, self._failures = goal, 0
            self.progress.begin(goal.desired)
            self._poked.set()

    def withdraw(self) -> None:
        """End after the engine run under way; what is in the process stays."""
        self._withdrawn = True
        self._poked.set()

    async def run(self) -> None:
        """Work until withdrawn, or until the process is no longer what was meant."""
        while not self._withdrawn:
            goal = self.goal
            self._poked.clear()
            wait = await self._step(goal)
            self._tools.changed()
            if wait is None:
                return
            if goal == self.goal:
                await self._sleep(wait)

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._poked.wait(), seconds if seconds > 0 else None)
        except TimeoutError:
            return

    async def _step(self, goal: Goal) -> float | None:
        """Do one engine run; return seconds until the next, 0 for none until poked, None when the process is gone."""
        try:
            outcome = await self._engine(goal)
            for name in goal.bundle.replaces if goal.desired is Desired.REVERTED else ():
                # A replacement that stopped half-way has led back to what it was to replace: that goes as well.
                if outcome.code is ExitCode.DONE or _not_applied(outcome.trouble):
                    outcome = await self._engine(goal, name)
        except (PodgraftError, ApiError, OSError, ValueError, *UNAVAILABLE) as error:
            return self._trouble(goal, error)
        trouble = outcome.trouble
        if trouble is not None and trouble.reason in GONE:
            return None
        if goal != self.goal:
            return 0.0  # what was done is no longer what is wanted; run() goes straight on to the new goal
        if outcome.code is ExitCode.DONE or (goal.desired is Desired.REVERTED and _not_applied(trouble)):
            self.progress.done(goal.desired)
            self._failures = 0
            self._look_first = True
            return LOOK_AGAIN_SECONDS
        if outcome.code is ExitCode.DEADLINE:
            self.progress.late(trouble)
            return self._backoff(MAX_RETRY_SECONDS[ExitCode.DEADLINE])
        if trouble is not None:
            refused = isinstance(trouble, Refused)
            counter = metrics.REFUSALS if refused else metrics.FAILURES
            counter.labels(OPS[goal.desired], trouble.reason.value).inc()
            phase = Phase.REFUSED if refused else Phase.FAILED
            self.progress.broken(phase, trouble.reason, f"{trouble.detail}; {trouble.hint}")
        return self._backoff(MAX_TROUBLE_SECONDS)

    async def _engine(self, goal: Goal, name: str | None = None) -> Outcome:
        """Run the engine once; name: of the patch to revert, where it is not the goal's own."""
        patch = name or goal.bundle.name
        async with self._turn():
            if self._look_first and await self._is_so(goal):
                return Outcome(ExitCode.DONE)
            path = await self._tools.bundle(goal.bundle) if goal.desired is Desired.APPLIED else None
            request = Request(
                op=OPS[goal.desired],
                pid=self.found.pid,
                start_time=self.found.start_time,
                bundle=str(path) if path is not None else None,
                name=patch if goal.desired is Desired.REVERTED else None,
                # A short run frees its place for others of the node; the next one goes on where it stopped.
                deadline=min(goal.deadline, LONGEST_RUN_SECONDS),
                points=list(goal.points) if goal.desired is Desired.APPLIED else [],
            )
            began = time.monotonic()
            self.progress.begin_run()
            outcome = await self._tools.run(request, self._hear)
        seconds = time.monotonic() - began
        metrics.ENGINE_RUNS.labels(request.op, outcome.code.name.lower()).inc()
        metrics.ENGINE_SECONDS.labels(request.op).observe(seconds)
        log.info(
            "engine run",
            op=request.op,
            patch=patch,
            exit=outcome.code.name,
            reason=outcome.trouble.reason if outcome.trouble else None,
            detail=outcome.trouble.detail if outcome.trouble else None,
            threads=f"{self.progress.moved}/{self.progress.total}",
            seconds=round(seconds, 3),
        )
        return outcome

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for this process, and for one of the node's places for engines."""
        lock = self._tools.locks.setdefault(self.found.pid, asyncio.Lock())
        async with AsyncExitStack() as held:
            with metrics.ENGINES.labels("waiting").track_inprogress():
                await held.enter_async_context(lock)
                await held.enter_async_context(self._tools.slots)
            with metrics.ENGINES.labels("running").track_inprogress():
                yield

    async def _is_so(self, goal: Goal) -> bool:
        """After a restart of the agent the process itself says where it stands."""
        self._look_first = False
        request = Request(op="status", pid=self.found.pid, start_time=self.found.start_time)
        heard: list[Event] = []
        outcome = await self._tools.run(request, heard.append)
        return outcome.code is ExitCode.DONE and self.progress.adopt(goal.desired, goal.bundle, heard)

    def _trouble(self, goal: Goal, error: Exception) -> float:
        """Tell what kept the engine from running: no bundle, no child, no space, a line that makes no sense."""
        reason, message = str(Reason.INTERNAL), f"{type(error).__name__}: {error}"
        if isinstance(error, PodgraftError):
            reason, message = str(error.reason), f"{error.detail}; {error.hint}"
        elif isinstance(error, (ApiError, *UNAVAILABLE)):
            reason = "BundleNotFetched"
        metrics.FAILURES.labels(OPS[goal.desired], reason).inc()
        log.warning("the engine could not run", patch=goal.bundle.name, reason=reason, error=str(error))
        if goal == self.goal:
            self.progress.broken(Phase.REFUSED if isinstance(error, Refusal) else Phase.FAILED, reason, message)
        return self._backoff(MAX_TROUBLE_SECONDS)

    def _hear(self, event: Event) -> None:
        self.progress.hear(event)
        if isinstance(event, HookRan) and not event.ok:
            log.warning("a hook of the patch failed", patch=self.goal.bundle.name, pid=self.found.pid, why=event.why)
        self._tools.changed()

    def _backoff(self, limit: float) -> float:
        self._failures += 1
        return min(limit, FIRST_RETRY_SECONDS * 2.0 ** min(self._failures - 1, 10))


def _not_applied(trouble: Refused | Failed | None) -> bool:
    return trouble is not None and trouble.reason is Reason.NOT_APPLIED
