# SPDX-License-Identifier: GPL-2.0-only
"""One engine inside one process: the helper that it has borrowed a thread for, the state, and who works with both."""

import time
from contextlib import suppress
from itertools import islice
from typing import Self

from podgraft_bundle.errors import DeadlineError, Reason
from podgraft_engine.exceptions import Exceptions
from podgraft_engine.helper import block
from podgraft_engine.helper.carrier import Borrowed, check_filters, choose, obtain_helper
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.hooks.hooks import Hooks, wait_for_hook
from podgraft_engine.inspection import open_target
from podgraft_engine.patched.pages import Pages
from podgraft_engine.patched.state import State, open_state
from podgraft_engine.prepare import release_workspaces
from podgraft_engine.target.awake import check_awake
from podgraft_engine.target.limits import Needs, check_memory
from podgraft_engine.target.proc import Process
from podgraft_engine.target.tracer import NotHeld
from podgraft_engine.threads.migration import Emit
from podgraft_engine.wakeup.wakeups import Goal, Wakeups


class Session:
    """What one engine has open in a process. A context manager: the helper is let go at the end.

    emit: where events go. began, deadline: on the clock of time.monotonic. target: what is seen from outside.
    """

    def __init__(self, process: Process, emit: Emit, deadline: float) -> None:
        """Open the process; nothing of it is touched before `enter`."""
        self.began = time.monotonic()
        self.process = process
        self.emit = emit
        self.deadline = deadline
        self.target = open_target(process)
        self.borrowed: Borrowed | None = None
        self._state: State | None = None

    @property
    def helper(self) -> Helper:
        """Return the helper thread, once the process was entered."""
        assert self.borrowed is not None  # noqa: S101 (the order of the steps)
        return self.borrowed.helper

    @property
    def state(self) -> State:
        """Return the state, once the process was entered."""
        assert self._state is not None  # noqa: S101 (the order of the steps)
        return self._state

    @property
    def hooks(self) -> Hooks:
        """Return who calls the hooks of patches."""
        return Hooks(self.target, self.state, self.helper, self.emit)

    @property
    def pages(self) -> Pages:
        """Return who switches pages."""
        return Pages(self.process, self.target.memory, self.helper, self.state)

    @property
    def exceptions(self) -> Exceptions:
        """Return who tells the C++ runtime about new code."""
        return Exceptions(self.target, self.state, self.helper)

    def wakeups(self, goal: Goal | None = None) -> Wakeups:
        """Return who arms wake-up points, for a goal or only to disarm them."""
        return Wakeups(self.target, self.state, self.helper, goal, switching=self.target.switching is not None)

    def try_filters(self) -> None:
        """Refuse before anything is touched where a seccomp filter would stop us; `enter` asks again, by thread."""
        for tid in islice(choose(self.process, None), 1):
            with suppress(NotHeld):
                check_filters(self.process, tid)

    def enter(self) -> None:
        """Open block, helper and state, and settle what an engine before us left half done."""
        target = self.target
        check_awake(self.process)
        check_memory(self.process, Needs())
        if target.block is None:
            target.block = block.place(self.process, target.memory)
        # Now, for a helper leaves when it is idle: a file without .eh_frame_hdr is parsed as a whole.
        for module in target.modules:
            module.read_ahead()
        _ = target.switching
        generation = target.state.document.generation if target.state else 0
        wait_for_hook(target)
        self.borrowed = obtain_helper(self.process, target.memory, target.block, generation)
        self._state = open_state(self.process, target.memory, target.block, self.helper)
        self.pages.recover()
        self.hooks.settle()
        if self.state.document.in_transition() is None:
            # An engine before us may have been killed between its last thread and its last page.
            self.wakeups().disarm()
            self.exceptions.settle()
            release_workspaces(self.state, self.helper)

    def show_state(self) -> None:
        """Let an inspection see the state as it is now."""
        self.target.state = self.state

    def tend(self) -> None:
        """Keep the helper while something takes long. Raises DeadlineError when it takes too long."""
        self.helper.tend()
        if time.monotonic() > self.deadline:
            raise DeadlineError(Reason.DEADLINE_PASSED, "the search for calls on other stacks takes longer than that")

    def close(self) -> None:
        """Let go of everything that is open."""
        if self.borrowed is not None:
            self.borrowed.helper.close()
        for module in self.target.modules:
            module.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
