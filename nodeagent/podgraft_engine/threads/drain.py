# SPDX-License-Identifier: GPL-2.0-only
"""Make sure that nobody is inside a hole before its bytes become padding again.

A thread that was preempted between a site's short jump and the long jump in the hole would run into the padding. By
now no site leads there any more, so each thread has only to be seen outside once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from podgraft_engine.target.ehframe import RSP
from podgraft_engine.target.proc import Process
from podgraft_engine.target.tracer import NotHeld, hold
from podgraft_engine.threads.mover import Stacks, Unwinder, frame_of
from podgraft_engine.threads.stack import Forbidden, Frame, judge

FIRST_PAUSE_S: Final = 0.001
LONGEST_PAUSE_S: Final = 0.1
# How long a running thread may take to go to sleep somewhere else before it is held.
GRACE_S: Final = 0.2
# It must have had a processor for that long (threads/migration.py), but for the last part of the time.
GRACE_ON_CPU_S: Final = 0.05
LONGEST_PATIENCE: Final = 0.5


def drained(looker: "Looker", ours: set[int], deadline: float, tend: Callable[[], None]) -> bool:
    """Wait until every thread was seen outside of the given code; False when time.monotonic() passes the deadline.

    Sleeping threads are read from outside; only those that go on running are held, each alone, less and less often.
    `tend` is called for each thread, so that the helper does not leave for want of work.
    """
    began = time.monotonic()
    left = {tid for tid in looker.process.every_thread() if tid not in ours}
    ran = {tid: looker.process.cpu_seconds(tid) for tid in left}
    pause = FIRST_PAUSE_S
    while left:
        looker.stacks.refresh()
        waited = time.monotonic() - began
        late = waited >= LONGEST_PATIENCE * (deadline - began)
        for tid in sorted(left):
            turn = late or looker.process.has_run(tid, GRACE_ON_CPU_S, ran[tid])
            if looker.is_outside(tid, may_hold=turn and waited >= GRACE_S):
                left.remove(tid)
            tend()
        if left and time.monotonic() > deadline:
            return False
        if left:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
    return True


@dataclass(frozen=True)
class Looker:
    """Says of single threads whether they are outside of some code."""

    process: Process
    stacks: Stacks
    unwinder: Unwinder
    code: Forbidden

    def is_outside(self, tid: int, *, may_hold: bool) -> bool:
        """Tell whether a thread is outside, or has ended; one that runs is held for it if it may be."""
        sleep = self.process.sleeping_in(tid)
        sleeps = sleep is not None and sleep.in_call
        if sleep is not None and sleeps:
            frame = Frame(sleep.pc, {RSP: sleep.sp})
            read = self._read(frame, self.stacks.top_from_outside(tid, sleep.sp))
            if self._clear(frame, read) and self.process.sleeping_in(tid) == sleep:
                return True
        thread = self.process.thread(tid)
        if thread is None or not thread.runs:
            return True
        if sleeps or not may_hold:
            return False
        try:
            with hold(tid) as held:
                frame = frame_of(held)
                read = self._read(frame, self.stacks.top(frame.registers[RSP], held.regs.fs_base))
        except NotHeld as reason:
            return reason.gone
        # What was read is judged when the thread runs again.
        return self._clear(frame, read)

    def _clear(self, frame: Frame, read: tuple[bytearray, int] | None) -> bool:
        return read is not None and judge(self.code, frame, *read, self.unwinder.row).quiescent

    def _read(self, frame: Frame, top: int | None) -> tuple[bytearray, int] | None:
        return self.stacks.read(frame.registers[RSP], top)
