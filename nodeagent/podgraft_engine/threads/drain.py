# SPDX-License-Identifier: GPL-2.0-only
"""Make sure that nobody is inside a hole before its bytes become padding again.

A thread that was preempted between a site's short jump and the long jump in the hole would run into the padding. By
now no site leads there any more, so each thread has only to be seen outside once.
"""

import time
from typing import Final

from podgraft_engine.target.proc import Process
from podgraft_engine.target.tracer import NotHeld, hold
from podgraft_engine.threads.mover import Stacks
from podgraft_engine.threads.stack import Forbidden

PAUSE_S: Final = 0.001


def drained(process: Process, stacks: Stacks, forbidden: Forbidden, ours: set[int], deadline: float) -> bool:
    """Wait until every thread was seen with neither pc nor a saved pc in the given code; False at the deadline.

    Sleeping threads are read from outside; only running ones are held, each alone.
    """
    left = {tid for tid in process.threads() if tid not in ours}
    while left:
        stacks.refresh()
        left = {tid for tid in left if tid in process.threads() and not _outside(process, stacks, forbidden, tid)}
        if left and time.monotonic() > deadline:
            return False
        if left:
            time.sleep(PAUSE_S)
    return True


def _outside(process: Process, stacks: Stacks, forbidden: Forbidden, tid: int) -> bool:
    sleep = process.sleeping_in(tid)
    if sleep is not None and sleep.nr is not None and sleep.nr >= 0:
        return _clear(stacks, forbidden, sleep.pc, sleep.sp, None) and process.sleeping_in(tid) == sleep
    try:
        with hold(tid) as held:
            return _clear(stacks, forbidden, held.regs.rip, held.regs.rsp, held.regs.fs_base)
    except NotHeld as reason:
        return reason.gone


def _clear(stacks: Stacks, forbidden: Forbidden, pc: int, sp: int, fs_base: int | None) -> bool:
    top = stacks.top(sp, fs_base)
    read = stacks.read(sp, top) if top is not None else None
    return forbidden.at_pc(pc) is None and read is not None and forbidden.scan(*read) is None
