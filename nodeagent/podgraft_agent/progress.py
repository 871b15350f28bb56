"""What is known of one process: engine events in, a ProcessReport out."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from podgraft_agent import metrics
from podgraft_api.nodepatch import (
    MAX_STRAGGLERS,
    BundleRef,
    Desired,
    Phase,
    ProcessReport,
    Straggler,
)
from podgraft_bundle.protocol import (
    Event,
    Failed,
    Finalized,
    Inspected,
    Migrated,
    Prepared,
    Refused,
    Reverted,
    Status,
    Waiting,
)

MOTION = {Desired.APPLIED: Phase.APPLYING, Desired.REVERTED: Phase.REVERTING}
DONE = {Desired.APPLIED: Phase.APPLIED, Desired.REVERTED: Phase.REVERTED}
MESSAGE_LIMIT = 1024
_NO_THREAD = 0  # of a call that is suspended on a stack of its own


@dataclass
class Progress:
    """Mutable state of one process; `patched` counts threads that run the new code."""

    container: str
    pid: int
    start_time: int
    phase: Phase = Phase.PENDING
    desired: Desired = Desired.APPLIED
    total: int = 0
    moved: int = 0
    reason: str | None = None
    message: str | None = None
    max_held: float = 0.0
    stragglers: dict[int, Straggler] = field(default_factory=dict)
    _heard: set[int] = field(default_factory=set)

    def begin(self, desired: Desired) -> None:
        """A new goal: counting starts anew, the longest hold stays."""
        self.desired, self.phase = desired, Phase.PENDING
        self.moved = 0
        self.reason = self.message = None
        self.stragglers.clear()

    def begin_run(self) -> None:
        """An engine run begins; what the last one told stays until this one tells more."""
        self._heard = set()

    def hear(self, event: Event) -> None:
        """Take in one event of an engine run."""
        if isinstance(event, Inspected):
            self.total = max(self.total, event.threads)
        elif isinstance(event, Prepared):
            if event.carrier_held_us is not None:
                metrics.CARRIER_HELD.observe(event.carrier_held_us / 1e6)
        elif isinstance(event, Migrated):
            self._on_the_way()
            self.moved, self.total = event.migrated, event.total
            metrics.MIGRATIONS.labels(event.how).inc()
            self._held(event.held_us)
            self.stragglers.pop(event.tid, None)
            self.stragglers.pop(_NO_THREAD, None)  # where one migrates, no call is left on its own
        elif isinstance(event, Waiting):
            self._on_the_way()
            self._heard.add(event.tid)
            self.stragglers[event.tid] = Straggler(
                tid=event.tid,
                name=event.name,
                why=event.why,
                function=event.function,
                syscall=event.syscall,
                waited_seconds=round(event.waited_s, 1),
            )
        elif isinstance(event, Finalized | Reverted):
            self.moved = self.total = event.threads
            self.max_held = max(self.max_held, event.max_held_us)

    def done(self, desired: Desired) -> None:
        """The engine says that what was asked is so."""
        self.phase, self.reason, self.message = DONE[desired], None, None
        self.moved = self.total
        self.stragglers.clear()

    def late(self, trouble: Refused | Failed | None) -> None:
        """The deadline passed; the next run goes on where this one stopped."""
        self._on_the_way()
        # A straggler of an earlier run that this run did not meet has ended or moved meanwhile.
        self.stragglers = {tid: one for tid, one in self.stragglers.items() if tid in self._heard}
        self.reason = "DeadlinePassed"
        self.message = trouble.detail[:MESSAGE_LIMIT] if trouble is not None else None

    def broken(self, phase: Phase, reason: str, message: str) -> None:
        """The engine refused or failed."""
        self.phase, self.reason, self.message = phase, reason, message[:MESSAGE_LIMIT]

    def adopt(self, desired: Desired, bundle: BundleRef, heard: Iterable[Event]) -> bool:
        """Return whether the process itself says that the goal is reached, and take its numbers."""
        status = next((one for one in heard if isinstance(one, Status)), None)
        if status is None:
            return False
        if desired is Desired.REVERTED:
            return not any(one.name in bundle.names for one in status.patches)
        return any(one.digest == bundle.digest and one.phase == "finalized" for one in status.patches)

    @property
    def migrated(self) -> int:
        """Threads that run the new code; of a revert, those that are still to move."""
        return self.moved if self.desired is Desired.APPLIED else max(0, self.total - self.moved)

    def report(self) -> ProcessReport:
        """Return the report."""
        return ProcessReport(
            container=self.container,
            pid=self.pid,
            start_time=self.start_time,
            phase=self.phase,
            threads_total=self.total,
            threads_migrated=self.migrated,
            reason=self.reason,
            message=self.message,
            max_held_microseconds=round(self.max_held, 1),
            stragglers=tuple(self.stragglers.values())[:MAX_STRAGGLERS] or None,
        )

    def _on_the_way(self) -> None:
        # A refused process that is tried again stays refused until something happens: no flapping.
        self.phase = MOTION[self.desired]
        self.reason = self.message = None

    def _held(self, microseconds: float) -> None:
        self.max_held = max(self.max_held, microseconds)
        if microseconds > 0:
            metrics.HELD.observe(microseconds / 1e6)
