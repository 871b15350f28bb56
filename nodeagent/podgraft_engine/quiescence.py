# SPDX-License-Identifier: GPL-2.0-only
"""When nobody is in some code any more: every thread is moved off it, or it is waited until all have left."""

from dataclasses import dataclass

from podgraft_bundle.errors import DeadlineError, PodgraftError, Reason
from podgraft_engine.code.wakepoints import declared_point
from podgraft_engine.patched.state import CodeRange, PatchRecord
from podgraft_engine.session import Session
from podgraft_engine.target.ehframe import EhFrame
from podgraft_engine.threads.drain import Looker, drained
from podgraft_engine.threads.migration import Migration, Tally
from podgraft_engine.threads.mover import Mover, Rule, Stacks, Unwinder
from podgraft_engine.threads.stack import Forbidden
from podgraft_engine.threads.suspended import SuspendedCalls, wait_until_none
from podgraft_engine.wakeup.wakeups import Goal


@dataclass(frozen=True)
class Quiescence:
    """The threads of one process, for the transition of one patch."""

    session: Session
    record: PatchRecord

    def migrate(
        self, code: list[CodeRange], generation: int, *, left: list[CodeRange], reverting: bool = False
    ) -> Tally:
        """Move every thread off `code` and to a generation: by the points it comes by, else by our hand.

        left: the part of `code` that nobody takes any more in the end.

        Raises:
            DeadlineError: threads are left. PodgraftError: NO_ROOM_NEARBY, PROCESS_EXITED.
        """
        session, record = self.session, self.record
        wakeups = session.wakeups(Goal(generation, code))
        declared = [declared_point(session.target.modules, name) for name in record.points]
        wakeups.open_areas(declared)
        stacks = self._stacks()
        rule = Rule(
            self._forbid([*code, *wakeups.routines]),
            generation,
            Forbidden(wakeups.credulous),
            reverting=reverting,
            old_below=record.generation if reverting and not record.complete else None,
            switching=session.target.switching is not None,
        )
        unwinder = self._unwinder()
        # A thread that goes back to a call on such a stack must not be ahead of it, and in the end none may be left.
        self._await_suspended(left, unwinder)
        mover = Mover(session.process, stacks, unwinder, rule)
        helper = (session.helper.tid, session.helper.tend)
        # Not before the migration follows the log.
        migration = Migration(session.process, stacks, mover, session.emit, helper=helper, points=wakeups)
        for name, point in zip(record.points, declared, strict=True):
            if not wakeups.declare(point):
                raise PodgraftError(Reason.NO_ROOM_NEARBY, f"there is no room for a declared point in {name}")
        if not migration.run(session.deadline):
            names = "; ".join(f"{w.tid} ({w.name}): {w.why}" for w in migration.tally.waiting[:5])
            raise DeadlineError(Reason.DEADLINE_PASSED, f"{len(migration.tally.waiting)} threads are left: {names}")
        self._await_suspended(left, unwinder)
        wakeups.disarm()
        return migration.tally

    def drain(self, ranges: list[CodeRange]) -> None:
        """Wait until nobody is in some code of ours that nothing leads to any more. Raises DeadlineError."""
        session = self.session
        looker = Looker(session.process, self._stacks(), self._unwinder(), self._forbid(ranges))
        if not drained(looker, {session.helper.tid}, session.deadline, session.helper.tend):
            raise DeadlineError(Reason.DEADLINE_PASSED, "a thread is still on its way through a jump of ours")

    def _await_suspended(self, code: list[CodeRange], unwinder: Unwinder) -> None:
        """Wait until no call of some code is suspended on a stack that no thread is on."""
        session = self.session
        if session.target.switching is not None:
            calls = SuspendedCalls(session.process, session.target.memory, session.target.switching, session.tend)
            forbidden = Forbidden(code)
            wait_until_none(lambda: calls.find(forbidden, unwinder.row), session.emit, session.deadline)

    def _stacks(self) -> Stacks:
        target = self.session.target
        return Stacks(self.session.process, target.memory, target.block.address if target.block else 0)

    def _forbid(self, ranges: list[CodeRange]) -> Forbidden:
        """Forbid code, and the way back from a signal handler: what lies behind it may be on another stack."""
        returns = [
            CodeRange(function="a signal handler", start=address - 1, end=address + 1)
            for module in self.session.target.modules
            for address in module.signal_returns
        ]
        return Forbidden([*ranges, *returns])

    def _unwinder(self) -> Unwinder:
        new_code = []
        for patch in self.session.state.document.patches:
            if patch.eh_frame is not None and (patch.served or patch is self.record):
                address, size = patch.eh_frame
                frames = EhFrame(self.session.target.memory.read(address, size), address, None)
                new_code.append((patch.code.start, patch.code.end, frames))
        return Unwinder(self.session.target.modules, new_code)
