# SPDX-License-Identifier: GPL-2.0-only
"""Move every thread of a process to one generation: until nobody is left behind, or the deadline passes."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from podgraft_bundle.protocol import Event, Migrated, Waiting
from podgraft_engine.target.proc import Process
from podgraft_engine.threads.mover import Mover, Outcome, Stacks

FIRST_PAUSE_S: Final = 0.0005
LONGEST_PAUSE_S: Final = 0.1
REPORT_AFTER_S: Final = 0.25
REPORT_EVERY_S: Final = 1.0
KEEP_ALIVE_S: Final = 0.5

Emit = Callable[[Event], None]
ThreadKey = tuple[int, int]


@dataclass
class Tally:
    """What has been reached: threads that are on the generation, the ways they went, who is waited for."""

    done: set[ThreadKey] = field(default_factory=set)
    how: Counter[str] = field(default_factory=Counter)
    waiting: list[Waiting] = field(default_factory=list)


@dataclass
class _Straggler:
    since: float
    next_try: float
    pause: float = FIRST_PAUSE_S
    next_report: float = 0.0


class Migration:
    """One pass over all threads at a time, each alone; new threads are found by listing again.

    Args:
        helper: tid of our own thread, and what to call now and then so that it does not leave for want of work.
    """

    def __init__(
        self, process: Process, stacks: Stacks, mover: Mover, emit: Emit, helper: tuple[int, Callable[[], None]]
    ) -> None:
        self._process = process
        self._stacks = stacks
        self._mover = mover
        self._emit = emit
        self._ours = {helper[0]}
        self._helper_works = helper[1]
        self._alive_at = time.monotonic()
        self._late: dict[ThreadKey, _Straggler] = {}
        self.tally = Tally()

    def run(self, deadline: float) -> bool:
        """Migrate until all are done (True) or time.monotonic() passes the deadline (False).

        Args:
            deadline: on the clock of time.monotonic.

        Raises:
            PodgraftError: PROCESS_EXITED, GS_BASE_IN_USE.
        """
        while True:
            if self._pass():
                return True
            if time.monotonic() >= deadline:
                return False
            self._keep_alive()
            pauses = [late.next_try for late in self._late.values()]
            wait = min(pauses, default=0.0) - time.monotonic()
            time.sleep(min(max(wait, 0.0002), LONGEST_PAUSE_S))

    def _pass(self) -> bool:
        """Look at every thread that is due; True when each thread of one whole listing was done before the listing."""
        keys = self._list()
        if not keys and not self._process.alive():
            raise self._process.gone()
        left = [key for key in keys if key not in self.tally.done]
        self._late = {key: late for key, late in self._late.items() if key in left}
        if not left:
            return True
        self._stacks.refresh()
        self.tally.waiting = []
        for key in left:
            late = self._late.get(key)
            if late is None or late.next_try <= time.monotonic():
                self._try(key, len(keys))
            if time.monotonic() - self._alive_at > KEEP_ALIVE_S:
                self._keep_alive()
        return False

    def _keep_alive(self) -> None:
        self._helper_works()
        self._alive_at = time.monotonic()

    def _list(self) -> list[ThreadKey]:
        found = [(tid, self._process.thread(tid)) for tid in self._process.every_thread() if tid not in self._ours]
        return [(tid, thread.start_time) for tid, thread in found if thread is not None and thread.runs]

    def _try(self, key: ThreadKey, total: int) -> None:
        tid = key[0]
        outcome = self._mover.attempt(tid)
        if outcome.gone:
            self._late.pop(key, None)
        elif outcome.verdict.quiescent:
            self._late.pop(key, None)
            self.tally.done.add(key)
            self.tally.how[outcome.how] += 1
            self._emit(
                Migrated(
                    tid=tid,
                    name=self._process.comm(tid),
                    how=outcome.how,
                    held_us=round(outcome.held_us, 1),
                    migrated=len(self.tally.done),
                    total=max(total, len(self.tally.done)),
                )
            )
        else:
            self._postpone(key, outcome)

    def _postpone(self, key: ThreadKey, outcome: Outcome) -> None:
        """Back off, and say who is waited for once it takes long enough to be of interest."""
        now = time.monotonic()
        late = self._late.setdefault(key, _Straggler(now, now))
        late.pause = min(late.pause * 2, LONGEST_PAUSE_S)
        late.next_try = now + late.pause
        verdict = outcome.verdict
        report = Waiting(
            tid=key[0],
            name=self._process.comm(key[0]),
            why=verdict.why,
            function=verdict.function,
            call_site=verdict.call_site,
            syscall=outcome.syscall,
            waited_s=round(now - late.since, 3),
        )
        self.tally.waiting.append(report)
        if now - late.since >= REPORT_AFTER_S and now >= late.next_report:
            late.next_report = now + REPORT_EVERY_S
            self._emit(report)
