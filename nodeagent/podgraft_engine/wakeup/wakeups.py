# SPDX-License-Identifier: GPL-2.0-only
"""Arm wake-up points for one transition, read who has migrated there, and take the jumps away again.

Armed points are harmless without an engine: threads go on migrating, and pages may stay as they are for ever. So an
engine that is killed, or gives up at its deadline, leaves them armed; the next one finds them in the state.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from podgraft_engine.code.wakepoints import NEVER, WakePoint, WakePoints
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.helper.rpc import NotMovedError
from podgraft_engine.inspection import Target
from podgraft_engine.patched.pages import Pages, compose
from podgraft_engine.patched.state import CodeRange, State
from podgraft_engine.steps import Step, reached
from podgraft_engine.target import syscalls
from podgraft_engine.target.layout import PAGE
from podgraft_engine.target.maps import Maps
from podgraft_engine.target.proc import Process, SleepState
from podgraft_engine.wakeup.area import Area, open_area
from podgraft_engine.wakeup.routine import MAX_HANDLER_RETURNS, Window, descriptor

SAMPLE: Final = 512
_CREDULOUS: Final = ("aio_suspend", "aio_suspend64", "lio_listio", "lio_listio64", "gai_suspend", "getaddrinfo_a")
MAIN_STACK: Final = 8 * 2**20
_FUTEX_WAITS: Final = (0, 9)
_FUTEX_PRIVATE: Final = 128
_FUTEX_WAKE: Final = 1


@dataclass(frozen=True)
class Goal:
    """What threads are to reach, and the code that must not be on their stacks then."""

    generation: int
    forbidden: list[CodeRange]


class Wakeups:
    """The wake-up points of one process. goal None: nothing can be armed, only taken away.

    switching: the program switches stacks. A thread that wakes looks at one, and cannot tell whether it is the only one
    with calls on it, so no points are armed but the declared ones.
    """

    def __init__(
        self, target: Target, state: State, helper: Helper, goal: Goal | None = None, *, switching: bool = False
    ) -> None:
        self._process = target.process
        self._memory = target.memory
        self._state = state
        self._helper = helper
        self._goal = goal
        self._switching = switching
        self._target = target
        self._pages = Pages(target.process, target.memory, helper, state)
        self._finder = WakePoints(target.modules)
        self._returns = sorted({a for module in target.modules for a in module.signal_returns})
        self._areas = [Area(target.memory, helper, state, record) for record in state.document.wake]
        self._covered: dict[int, bool] = {}

    @property
    def routines(self) -> list[CodeRange]:
        """The code of all routines: a thread in one of them is let be."""
        return [
            CodeRange(function="a wake-up point", start=area.routines.low, end=area.routines.high)
            for area in self._areas
        ]

    def open_areas(self, declared: list[WakePoint]) -> None:
        """Make room for routines in the C library and every module with a declared point or a sleeping thread.

        Raises:
            PodgraftError: PROCESS_EXITED, HELPER_UNREACHABLE, NO_ROOM_NEARBY.
        """
        sleepers = (self._process.sleeping_in(tid) for tid in self._process.threads()[:SAMPLE])
        places = [sleep.pc for sleep in sleepers if sleep is not None] + [point.address for point in declared]
        found = map(self._finder.module_at, places)
        modules = {m.bias: m for m in found if m is not None} | {m.bias: m for m in self._target.modules if m.is_glibc}
        for module in modules.values():
            area = open_area(self._process, self._memory, self._helper, self._state, module)
            if area is not None and all(known.record is not area.record for known in self._areas):
                self._areas.append(area)

    def cover(self, sleep: SleepState) -> bool:
        """Tell whether a sleeping thread comes by an armed point when it wakes; arms one if there is a safe place."""
        if sleep.pc not in self._covered:
            never = self._switching or sleep.nr in NEVER
            point = None if never else self._finder.behind(sleep.pc)
            self._covered[sleep.pc] = point is not None and self._may_be_armed(point) and self._arm(point)
        return self._covered[sleep.pc]

    def declare(self, point: WakePoint) -> bool:
        """Arm a declared point: who comes by migrates, and nobody looks at its stack. False when there is no room."""
        return self._arm(point, declared=True)

    def migrated(self) -> dict[int, bool]:
        """Return who gave itself the goal's generation, by the thread's number for itself: at a declared point?"""
        if self._goal is None:
            return {}
        return {tid: at for area in self._areas for tid, at in area.log(self._goal.generation)}

    @property
    def credulous(self) -> list[CodeRange]:
        """Functions of the C library that take every wake-up for the event they wait for (AIO_MISC_WAIT in glibc)."""
        return [
            CodeRange(function=name, start=start, end=end)
            for module in self._target.modules
            for name in _CREDULOUS
            for start, end in module.exported_range(name)
        ]

    def takes_nudges(self, sleep: SleepState) -> bool:
        """Tell whether a thread waits on a futex inside the C library, which looks again and goes on waiting.

        futex(2): a wait may end without a reason, and glibc's locks, conditions and joins allow for it. A program's own
        futex calls, which go through syscall(), are left alone.
        """
        if sleep.nr != syscalls.FUTEX or sleep.args[1] & 127 not in _FUTEX_WAITS:
            return False
        module = self._finder.module_at(sleep.pc)
        if module is None or not module.is_glibc:
            return False
        return not any(start <= sleep.pc < end for start, end in module.exported_range("syscall"))

    def nudge(self, sleep: SleepState) -> bool:
        """Wake one thread that takes nudges."""
        operation = _FUTEX_WAKE | sleep.args[1] & _FUTEX_PRIVATE
        return self._helper.call(syscalls.FUTEX, sleep.args[0], operation, 1) >= 0

    def disarm(self) -> None:
        """Bring the program's own bytes back at all points."""
        for area in self._areas:
            if area.record.armed:
                area.record.armed = []
                self._state.commit()
                reached(Step.POINTS_UNWANTED)
            self._tidy(area)
        self._covered.clear()

    def _tidy(self, area: Area) -> None:
        """Give every page what is still wanted there; also what an engine before us left undone."""
        pages = [page for page in area.pages if self._pages.has(page)]
        for page in pages:
            content = compose(self._state.document, page)
            if content:
                self._pages.switch(page, content)
            else:
                self._pages.restore(page)
        if pages:
            area.drop_log()

    def _arm(self, point: WakePoint, *, declared: bool = False) -> bool:
        module = self._finder.module_at(point.address)
        area = next((a for a in self._areas if module is not None and a.record.base == module.bias), None)
        if self._goal is None or area is None or not self._is_possible:
            return False
        if not area.add(point, declared=declared):
            return False
        self._publish(area, self._goal)
        fresh = point.address not in area.record.armed
        if fresh:
            area.record.armed.append(point.address)
            self._state.commit()
            reached(Step.POINT_WANTED)
        page = point.address // PAGE * PAGE
        try:
            self._pages.switch(page, compose(self._state.document, page))
        except NotMovedError:
            # Sealed, or at a limit: threads can be held instead.
            if fresh:
                area.record.armed.remove(point.address)
                self._state.commit()
            return False
        return True

    @cached_property
    def _is_possible(self) -> bool:
        """Not where the routine does not know all ways back from a handler, or threads may have different filters.

        The filters of one thread were checked before the helper was made; the others are known by their number alone.
        """
        filters = set()
        for tid in self._process.threads():
            self._helper.tend()
            status = self._process.status(tid)
            if status:
                filters.add(status.get("Seccomp_filters", "0"))
        return len(self._returns) <= MAX_HANDLER_RETURNS and len(filters) <= 1

    def _may_be_armed(self, point: WakePoint) -> bool:
        """Only where the text is the file's own, and never inside of code that is being replaced."""
        document = self._state.document
        replaced = [r for p in document.patches if p.phase != "retired" for r in p.old]
        if any(r.start < point.address + point.length and point.address < r.end for r in replaced):
            return False
        if any(point.address in w.armed for w in document.wake):
            return True
        page = point.address // PAGE * PAGE
        if not self._pages.has(page) and self._memory.anonymous(page):
            return False
        return self._memory.read(point.address, point.length) == point.original

    def _publish(self, area: Area, goal: Goal) -> None:
        content = descriptor(goal.generation, _main_stack(self._process), goal.forbidden, area.routines, self._returns)
        area.publish(goal.generation, content)


def _main_stack(process: Process) -> Window:
    """Return where the stack of the main thread may lie; empty when that cannot be known."""
    top = process.start_stack()
    stack = Maps(process).at(top)
    if stack is None or stack.path != "[stack]":
        return Window(0, 0)
    return Window(stack.end - MAIN_STACK, top)
