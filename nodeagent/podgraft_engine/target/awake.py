# SPDX-License-Identifier: GPL-2.0-only
"""Does any thread of the process run at all? In a frozen control group nobody would answer us before it is thawed."""

import time
from typing import Final

from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.target.proc import Process

# A process of one thread may just wait for its disk.
LOOKS: Final = 10
PAUSE_S: Final = 0.02
# Where the freezer of cgroup v2 lets a thread sleep (kernel/signal.c); its state is S there, in that of v1 it is D.
_FREEZER: Final = ("do_freezer_trap", "get_signal")


def check_awake(process: Process) -> None:
    """Refuse a process in which no thread goes on.

    Raises:
        Refusal: TARGET_FROZEN, NO_CARRIER when all threads are stopped by a signal. PodgraftError: PROCESS_EXITED.
    """
    for _ in range(LOOKS):
        reasons = set()
        for tid in process.threads():
            thread = process.thread(tid)
            if thread is None or not thread.runs:
                continue
            reason = _why_not(process, tid, thread.state)
            if reason is None:
                return
            reasons.add(reason)
        time.sleep(PAUSE_S)
    if not process.alive():
        raise process.gone()
    if reasons == {"stopped"}:
        raise Refusal(Reason.NO_CARRIER, "all threads are stopped by a signal", "let the process go on (kill -CONT)")
    raise Refusal(Reason.TARGET_FROZEN, f"all threads are {' or '.join(sorted(reasons))}")


def _why_not(process: Process, tid: int, state: str) -> str | None:
    """Say why a thread does not go on; None when it does. One that is held by a tracer is told of elsewhere."""
    if state == "S":
        return "frozen" if process.wait_channel(tid) in _FREEZER else None
    return {"D": "in uninterruptible sleep", "T": "stopped"}.get(state)
