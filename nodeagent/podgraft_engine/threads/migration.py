# SPDX-License-Identifier: GPL-2.0-only
"""Move every thread of a process to one generation: until nobody is left behind, or the deadline passes.

Threads that come by an armed point migrate there by themselves, and only the log tells of it. They are given time for
that. Whoever is not covered by a point, or does not come by, is looked at from outside and held alone.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from podgraft_bundle.protocol import Event, Migrated, Waiting
from podgraft_engine.target import syscalls
from podgraft_engine.target.proc import Process, SleepState
from podgraft_engine.threads.arrivals import Arrivals, ThreadKey
from podgraft_engine.threads.mover import Mover, Outcome, Stacks
from podgraft_engine.threads.stack import QUIESCENT, Verdict

SHORTEST_PAUSE_S: Final = 0.0002
FIRST_PAUSE_S: Final = 0.0005
LONGEST_PAUSE_S: Final = 0.1
REPORT_AFTER_S: Final = 0.25
REPORT_EVERY_S: Final = 1.0
# How long a thread may take to come by a wake-up point before it is looked at from outside.
GRACE_S: Final = 0.3
# A running one must have had a processor for that long: on a busy machine it may just not have had its turn, and be in
# the middle of a call that an interruption would cut short.
GRACE_ON_CPU_S: Final = 0.05
# A call with a time limit that an interruption would start anew is left alone until its time is over.
LIMIT_MARGIN_S: Final = 0.2
LONGEST_PATIENCE: Final = 0.5
NUDGES: Final = 5

Emit = Callable[[Event], None]


@dataclass
class Tally:
    """What has been reached: threads that are on the generation, the ways they went, who is waited for."""

    done: set[ThreadKey] = field(default_factory=set)
    how: Counter[str] = field(default_factory=Counter)
    waiting: list[Waiting] = field(default_factory=list)


@dataclass
class _Straggler:
    since: float
    report: Waiting
    next_try: float = 0.0
    pause: float = FIRST_PAUSE_S
    next_report: float = 0.0


class Points(Protocol):
    """Where threads migrate by themselves, as far as a migration must know it (wakeup/wakeups.py)."""

    def cover(self, sleep: SleepState) -> bool:
        """Tell whether a sleeping thread comes by an armed point when it wakes; arms one if there is a safe place."""

    def migrated(self) -> dict[int, bool]:
        """Return who has migrated by itself, by the thread's own number for itself: at a declared point?"""

    def takes_nudges(self, sleep: SleepState) -> bool:
        """Tell whether a sleeping thread is one that looks again and sleeps on."""

    def nudge(self, sleep: SleepState) -> bool:
        """Wake a sleeping thread that takes nudges."""


class Migration:
    """One pass over all threads at a time, each alone; new threads are found by listing again.

    Args:
        helper: tid of our own thread, and what to call for each thread, so that it does not leave for want of work.
        points: where threads migrate by themselves.
    """

    def __init__(
        self,
        process: Process,
        stacks: Stacks,
        mover: Mover,
        emit: Emit,
        *,
        helper: tuple[int, Callable[[], None]],
        points: Points,
    ) -> None:
        self._process = process
        self._stacks = stacks
        self._mover = mover
        self._emit = emit
        self._ours = {helper[0]}
        self._tend_helper = helper[1]
        self._points = points
        self._began = time.monotonic()
        self._late: dict[ThreadKey, _Straggler] = {}
        self._since: dict[ThreadKey, float] = {}
        self._ran: dict[ThreadKey, float | None] = {}
        self._nudged: Counter[ThreadKey] = Counter()
        self._names: dict[ThreadKey, str] = {}
        self._first = set(self._list())
        self._only_known_ones = True
        self._arrivals = Arrivals(process, points.migrated, self._first)
        self.tally = Tally()

    def run(self, deadline: float) -> bool:
        """Migrate until all are done (True) or time.monotonic() passes the deadline (False).

        Args:
            deadline: on the clock of time.monotonic.

        Raises:
            PodgraftError: PROCESS_EXITED, GS_BASE_IN_USE.
        """
        pause, keys = FIRST_PAUSE_S, sorted(self._first)
        while True:
            if self._pass(keys, deadline):
                return True
            if time.monotonic() >= deadline:
                # Who migrated in this very pass is no reason to fail; only one more listing shows that nobody is left.
                return not self.tally.waiting and self._pass(self._list(), deadline)
            # While threads are born, an instant in which none is new must not be missed.
            pause = min(1.5 * pause, LONGEST_PAUSE_S) if self._only_known_ones else FIRST_PAUSE_S
            tries = [late.next_try for late in self._late.values()]
            wait = min(tries, default=time.monotonic() + LONGEST_PAUSE_S) - time.monotonic()
            time.sleep(min(max(wait, SHORTEST_PAUSE_S), pause))
            keys = self._list()

    def _pass(self, keys: list[ThreadKey], deadline: float) -> bool:
        """Look at every thread of a listing that is due; True when each of them was done before the listing."""
        if not keys and not self._process.alive():
            raise self._process.gone()
        for key, declared in self._arrivals.since(keys).items():
            if key not in self.tally.done:
                self._done(key, Outcome(QUIESCENT, "point" if declared else "wakeup"), len(keys))
        left = [key for key in keys if key not in self.tally.done]
        there = set(left)
        self._late = {key: late for key, late in self._late.items() if key in there}
        self._only_known_ones = all(key in self._first or key in self._late for key in left)
        if not left:
            return True
        self._stacks.refresh()
        self.tally.waiting = []
        for key in left:
            late = self._late.get(key)
            if late is not None and late.next_try > time.monotonic():
                self.tally.waiting.append(late.report)
            elif not self._comes_by_itself(key, deadline):
                self._try(key, len(keys))
            self._tend_helper()
        return False

    def _comes_by_itself(self, key: ThreadKey, deadline: float) -> bool:
        """Tell whether a thread has still time to come by a point; a waiter that may not wake for long is nudged.

        Only for those who were there at the beginning: a younger thread has most likely inherited its generation.
        """
        if key not in self._first:
            return False
        if self._arrivals.expects(key):
            return True
        is_new = key not in self._since
        since = self._since.setdefault(key, time.monotonic())
        sleep = self._process.sleeping_in(key[0])
        patience = GRACE_S
        if sleep is not None and sleep.in_call:
            if not self._points.cover(sleep):
                return False
            limit = syscalls.time_limit(sleep.nr, sleep.args)
            if limit is not None:
                patience = min(limit + LIMIT_MARGIN_S, LONGEST_PATIENCE * (deadline - self._began))
            # Of many threads most come by while the first pass looks at the others.
            if not is_new and self._nudge(key, sleep):
                return True
        elif not self._has_run(key):
            patience = LONGEST_PATIENCE * (deadline - self._began)
        if time.monotonic() - since >= patience:
            return False
        self.tally.waiting.append(self._waiting(key, "it has not come by a wake-up point yet", since))
        return True

    def _has_run(self, key: ThreadKey) -> bool:
        """Tell whether a thread has had a processor for long enough since it was first seen running."""
        if key not in self._ran:
            self._ran[key] = self._process.cpu_seconds(key[0])
        return self._process.has_run(key[0], GRACE_ON_CPU_S, self._ran[key])

    def _nudge(self, key: ThreadKey, sleep: SleepState) -> bool:
        if self._nudged[key] == NUDGES or not self._points.takes_nudges(sleep):
            return False
        if not self._mover.may_be_nudged(key[0], sleep):
            return False
        self._nudged[key] += 1
        return self._points.nudge(sleep)

    def _list(self) -> list[ThreadKey]:
        keys = []
        for tid in self._process.every_thread():
            self._tend_helper()
            thread = self._process.thread(tid) if tid not in self._ours else None
            if thread is not None and thread.runs:
                key = (tid, thread.start_time)
                self._names[key] = thread.name
                keys.append(key)
        return keys

    def _try(self, key: ThreadKey, total: int) -> None:
        outcome = self._mover.attempt(key[0])
        if outcome.gone:
            self._late.pop(key, None)
        elif outcome.verdict.quiescent:
            self._done(key, outcome, total)
        else:
            self._postpone(key, outcome)

    def _done(self, key: ThreadKey, outcome: Outcome, total: int) -> None:
        self._tend_helper()
        self._late.pop(key, None)
        self.tally.done.add(key)
        self.tally.how[outcome.how] += 1
        self._emit(
            Migrated(
                tid=key[0],
                name=self._names[key],
                how=outcome.how,
                held_us=round(outcome.held_us, 1),
                migrated=len(self.tally.done),
                total=max(total, len(self.tally.done)),
            )
        )

    def _postpone(self, key: ThreadKey, outcome: Outcome) -> None:
        """Back off, and say who is waited for once it takes long enough to be of interest."""
        now, verdict = time.monotonic(), outcome.verdict
        since = self._late[key].since if key in self._late else now
        report = self._waiting(key, verdict.why, since, verdict, outcome.syscall)
        late = self._late.setdefault(key, _Straggler(since, report))
        late.report = report
        late.pause = min(late.pause * 2, LONGEST_PAUSE_S)
        late.next_try = now + late.pause
        self.tally.waiting.append(report)
        if now - late.since >= REPORT_AFTER_S and now >= late.next_report:
            late.next_report = now + REPORT_EVERY_S
            self._emit(report)

    def _waiting(
        self, key: ThreadKey, why: str, since: float, verdict: Verdict | None = None, syscall: str | None = None
    ) -> Waiting:
        return Waiting(
            tid=key[0],
            name=self._names[key],
            why=why,
            function=verdict.function if verdict else None,
            call_site=verdict.call_site if verdict else None,
            syscall=syscall,
            waited_s=round(time.monotonic() - since, 3),
        )
