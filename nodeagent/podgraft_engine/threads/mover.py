# SPDX-License-Identifier: GPL-2.0-only
"""Look at one thread and, if it is quiescent, let it change generation (design 5, ways c and d).

A sleeping thread is first read from outside; it is held only when it looks quiescent, and then checked again. A
running thread is held at once. Nobody else is ever held at the same time.
"""

import ctypes
from dataclasses import dataclass
from typing import Final, Literal

from podgraft_bundle.errors import PodgraftError, Reason
from podgraft_engine.target import syscalls
from podgraft_engine.target.ehframe import UNKNOWN, EhFrame, Row
from podgraft_engine.target.maps import Maps
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.module import Module
from podgraft_engine.target.proc import Process, SleepState
from podgraft_engine.target.tracer import Held, NotHeld, hold
from podgraft_engine.threads.stack import QUIESCENT, Forbidden, Frame, Verdict, judge

MAX_STACK: Final = 8 * 1024 * 1024
_GONE: Final = Verdict(quiescent=False, why="it has ended")

How = Literal["point", "wakeup", "sleeping", "running", "inherited"]


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt. verdict is quiescent when the thread is on the new generation now."""

    verdict: Verdict
    how: How = "running"
    held_us: float = 0.0
    gone: bool = False
    syscall: str | None = None


class Unwinder:
    """Unwind rows of every module and of our own new code, by run-time address."""

    def __init__(self, modules: list[Module], new_code: list[tuple[int, int, EhFrame]]) -> None:
        self._sources = [
            (mapping.start, mapping.end, module.eh_frame, module.bias)
            for module in modules
            for mapping in module.mappings
            if "x" in mapping.perms and module.eh_frame is not None
        ]
        self._sources += [(*code, 0) for code in new_code]

    def row(self, pc: int) -> Row | None:
        """Return the row for a pc, parsing if need be: only while nobody is held."""
        return self._find(pc, parse=True)

    def warm_row(self, pc: int) -> Row | None:
        """Return the row only if it is at hand."""
        return self._find(pc, parse=False)

    def _find(self, pc: int, *, parse: bool) -> Row | None:
        for start, end, frames, bias in self._sources:
            if start <= pc < end:
                return frames.row(pc - bias, parse=parse)
        return UNKNOWN


class Stacks:
    """Reads stacks into one buffer that is there before anybody is held. block: an address that stays mapped."""

    def __init__(self, process: Process, memory: Memory, block: int) -> None:
        self._process = process
        self._memory = memory
        self._block = block
        self._buffer = bytearray(MAX_STACK)
        self._buffer_at = ctypes.addressof((ctypes.c_char * MAX_STACK).from_buffer(self._buffer))
        self.refresh()

    def same_program(self) -> bool:
        """Tell whether the process still runs the program that we opened."""
        return self._memory.same_program(self._block)

    def refresh(self) -> None:
        """Read the memory map again: new threads have new stacks."""
        self._maps = Maps(self._process)

    def top(self, sp: int, fs_base: int | None) -> int | None:
        """Return the end of the stack that sp lies in; None when that is not the thread's own stack.

        glibc and musl keep the thread control block at the top of every thread stack, so fs_base of a thread lies in
        the mapping of its stack; on a coroutine's or an alternate stack it does not (wakeup findings, section 4).
        """
        found = self._maps.at(sp)
        if found is None or "w" not in found.perms:
            return None
        if found.path == "[stack]" or fs_base is None:
            return found.end
        return fs_base if sp < fs_base <= found.end else None

    def top_from_outside(self, tid: int, sp: int) -> int | None:
        """Return the end of the stack that a sleeping thread is on, as far as that is known without stopping it.

        It may be one of several in a large mapping: the thread's control block is the end of its own.
        """
        top, block = self.top(sp, None), self._process.control_block(tid)
        return block if block is not None and top is not None and sp < block < top else top

    def read(self, sp: int, top: int | None) -> tuple[bytearray, int] | None:
        """Read [sp, top); the buffer is valid until the next call. None when it is too large, unreadable, unknown."""
        size = top - sp if top is not None else 0
        if not 0 < size <= MAX_STACK or sp % 8:
            return None
        return (self._buffer, size) if self._memory.peek(sp, self._buffer_at, size) == size else None


@dataclass(frozen=True)
class Rule:
    """When a thread may change generation.

    forbidden: code that must not be on its stack. generation: where it goes. old_below: when an unfinished patch is
    reverted, a thread with a lower generation has never left the old code and needs no look at its stack. reverting: a
    generation beyond ours, the program's own value, means old code. credulous: functions whose callers are not nudged.
    switching: the program switches stacks, and a thread may be on one that is not its own.
    """

    forbidden: Forbidden
    generation: int
    credulous: Forbidden
    reverting: bool = False
    old_below: int | None = None
    switching: bool = False


class Mover:
    """Moves single threads to one generation, by one rule."""

    def __init__(self, process: Process, stacks: Stacks, unwinder: Unwinder, rule: Rule) -> None:
        self._process = process
        self._stacks = stacks
        self._unwinder = unwinder
        self._rule = rule
        self._forbidden = rule.forbidden
        self._last_stack: tuple[bytearray, int] | None = None

    def attempt(self, tid: int) -> Outcome:
        """Try once to move a thread."""
        sleep = self._process.sleeping_in(tid)
        if sleep is None or not sleep.in_call:
            if self._process.state(tid) in (None, "Z", "X"):
                return Outcome(_GONE, gone=True)
            return self._held(tid, "running", None)
        name = syscalls.name_of(sleep.nr)
        refusal = self._reason_to_wait(tid, sleep)
        if refusal:
            return Outcome(Verdict(quiescent=False, why=refusal), syscall=name)
        seen = self._look(tid, sleep)
        if not seen.quiescent and not seen.doubtful:
            return Outcome(seen, "sleeping", syscall=name)
        return self._held(tid, "sleeping", name)

    def may_be_nudged(self, tid: int, sleep: SleepState) -> bool:
        """Tell whether a sleeping thread could migrate if it woke, and would not mind that, as seen from outside."""
        return self._look(tid, sleep, self._rule.credulous).quiescent

    def _reason_to_wait(self, tid: int, sleep: SleepState) -> str | None:
        state = self._process.state(tid)
        if state == "D":
            return "it sleeps uninterruptibly"
        if state in ("T", "t"):
            return "it is stopped by a signal or a debugger"
        if syscalls.partial_progress(sleep.nr, sleep.args):
            return "an interruption would make its call return short"
        if not syscalls.can_be_interrupted(sleep.nr):
            return "it is not known how its call goes on after an interruption"
        return None

    def _look(self, tid: int, sleep: SleepState, *more: Forbidden) -> Verdict:
        """Read a sleeping thread's stack without stopping it; `more` is code that must not be on it either.

        The picture is whole when the thread still sleeps at the same place and has not run in between.
        """
        before = self._process.status(tid).get("voluntary_ctxt_switches")
        top = self._stacks.top_from_outside(tid, sleep.sp)
        read = self._stacks.read(sleep.sp, top)
        if read is None:
            return Verdict(quiescent=False, why="its stack pointer is not in a stack that is known", doubtful=True)
        again = self._process.sleeping_in(tid)
        after = self._process.status(tid).get("voluntary_ctxt_switches")
        if again != sleep or before != after:
            return Verdict(quiescent=False, why="it was about to run")
        # The other registers are not known from outside: an unwind that needs them is doubtful, a held look decides.
        frame = Frame(sleep.pc, {7: sleep.sp})
        switching, rows = self._rule.switching, self._unwinder.row
        verdicts = (judge(code, frame, *read, rows, switching=switching) for code in (self._forbidden, *more))
        return next((verdict for verdict in verdicts if not verdict.quiescent), QUIESCENT)

    def _held(self, tid: int, how: How, call: str | None) -> Outcome:
        """Hold the thread, check, set its generation or let it go."""
        frame: Frame | None = None
        verdict = _GONE
        try:
            with hold(tid) as held:
                frame = frame_of(held)
                if not self._process.has(tid) or not self._stacks.same_program():
                    raise self._process.gone()
                how, verdict = self._decide(held, frame, how)
        except NotHeld as reason:
            return Outcome(Verdict(quiescent=False, why=reason.why), gone=reason.gone, syscall=call)
        if not verdict.quiescent:
            self._learn(frame)
        return Outcome(verdict, how, held.held_us, syscall=call)

    def _decide(self, held: Held, frame: Frame, how: How) -> tuple[How, Verdict]:
        """Set the generation of a held thread if the rule allows it."""
        rule, generation = self._rule, held.regs.gs_base
        if generation == rule.generation:
            return "inherited", QUIESCENT
        if generation > rule.generation:
            # No generation of ours: the program's own value. Beyond the gate it means old code.
            if rule.reverting:
                return how, self._check(held, frame) if rule.old_below is None else QUIESCENT
            raise PodgraftError(Reason.GS_BASE_IN_USE, f"thread {held.tid} has GS base {generation:#x}")
        verdict = QUIESCENT
        if rule.old_below is None or generation >= rule.old_below:
            verdict = self._check(held, frame)
        if verdict.quiescent:
            held.set_generation(rule.generation)
        return how, verdict

    def _check(self, held: Held, frame: Frame) -> Verdict:
        sp = frame.registers[7]
        top = self._stacks.top(sp, held.regs.fs_base)
        read = self._stacks.read(sp, top)
        if read is None:
            return Verdict(quiescent=False, why="it is not on its own stack (coroutine, alternate stack, or too deep)")
        self._last_stack = read
        return judge(self._forbidden, frame, *read, self._unwinder.warm_row, switching=self._rule.switching)

    def _learn(self, frame: Frame | None) -> None:
        """Parse the unwind rows that the held look lacked, now that the thread runs again."""
        if frame is not None and self._last_stack is not None:
            judge(self._forbidden, frame, *self._last_stack, self._unwinder.row, switching=self._rule.switching)


def frame_of(held: Held) -> Frame:
    """Return what unwinding starts from."""
    regs = held.regs
    numbers = {3: regs.rbx, 6: regs.rbp, 7: regs.rsp, 12: regs.r12, 13: regs.r13, 14: regs.r14, 15: regs.r15}
    return Frame(regs.rip, numbers)
