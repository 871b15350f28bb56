# SPDX-License-Identifier: GPL-2.0-only
"""The numbered steps of the protocol: every point between two effects on the target, so that a test can kill us there.

PODGRAFT_STOP_AT=NAME or NAME:N ends the engine by SIGKILL when it comes to that step for the N-th time.
PODGRAFT_TRACE=FILE appends one byte, the number of the step, for each step that was reached. Without both: nothing.
"""

import os
import signal
from dataclasses import dataclass
from enum import IntEnum


class Step(IntEnum):
    """What has just been done; most steps come more than once in one run."""

    BLOCK_PLACED = 1
    SEIZED = 2
    INTERRUPTED = 3
    STOPPED = 4
    LOOKED = 5
    SLOTS_WRITTEN = 6
    REDIRECTED = 7
    SIGNALS_BLOCKED = 8
    GENERATION_SET = 9
    CALL_REWOUND = 10
    RELEASED = 11
    MAILBOX_LOCKED = 12
    COMMAND_WRITTEN = 13
    COMMAND_POSTED = 14
    HELPER_WOKEN = 15
    COMMAND_DONE = 16
    ROOT_SET = 17
    STATE_MAPPED = 18
    STATE_OPENED = 19
    COPY_WRITTEN = 20
    COMMITTED = 21
    STATE_BORN = 22
    AREA_MAPPED = 23
    CODE_WRITTEN = 24
    AREA_PROTECTED = 25
    WORKSPACE_MAPPED = 26
    GATE_OPENED = 27
    TWIN_INTENDED = 28
    TWIN_MADE = 29
    CLONE_MADE = 30
    CLONE_WRITTEN = 31
    PAGE_SWITCHED = 32
    HOLES_DRAINED = 33
    PAGE_HOME = 34
    WORKSPACE_FORGOTTEN = 35
    AREA_FORGOTTEN = 36
    HELPER_DISMISSED = 37
    WAKE_AREA_MAPPED = 38
    ROUTINE_WRITTEN = 39
    DESCRIPTOR_WRITTEN = 40
    GENERATION_PUBLISHED = 41
    POINT_WANTED = 42
    POINTS_UNWANTED = 43
    ROOM_MAPPED = 44
    ARENA_MAPPED = 45
    HOOK_POSTED = 46
    HOOK_ENTERED = 47
    HOOK_RUNNING = 48
    HOOK_ENDED = 49
    HOOK_NOTED = 50


@dataclass
class _Watch:
    """Where to stop and where to note; counts down."""

    stop_at: Step | None = None
    times: int = 1
    trace: int | None = None

    def note(self, step: Step) -> None:
        if self.trace is not None:
            os.write(self.trace, bytes([step]))
        if step == self.stop_at:
            self.times -= 1
            if self.times == 0:
                os.kill(os.getpid(), signal.SIGKILL)


_watch: _Watch | None = None


def reached(step: Step) -> None:
    """Say that a step is done."""
    if _watch is not None:
        _watch.note(step)


def watch(stop_at: str | None, trace: str | None) -> None:
    """Watch the steps from now on.

    Args:
        stop_at: NAME or NAME:N, None for no end.
        trace: path of a file, None for none.

    Raises:
        KeyError: there is no step of that name.
    """
    global _watch  # noqa: PLW0603 (one engine, one process)
    if stop_at is None and trace is None:
        _watch = None
        return
    name, _, times = (stop_at or "").partition(":")
    fd = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600) if trace else None
    _watch = _Watch(Step[name] if name else None, int(times or 1), fd)


watch(os.environ.get("PODGRAFT_STOP_AT"), os.environ.get("PODGRAFT_TRACE"))
