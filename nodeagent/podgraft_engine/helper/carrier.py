# SPDX-License-Identifier: GPL-2.0-only
"""Borrow one thread for a moment, so that it creates the helper (design 3.4, the measured protocol).

The thread is stopped, its registers go into the slots, one SETREGS points it at the block, and it is let go. From
there it needs nobody: an engine that is killed at any instant leaves it unharmed.
"""

import ctypes
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_engine.helper import block
from podgraft_engine.helper.mailbox import SIZE, Helper, adopt
from podgraft_engine.helper.seccomp import forbidden_calls, read_filters
from podgraft_engine.steps import Step, reached
from podgraft_engine.target import syscalls
from podgraft_engine.target.layout import gap_near
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Process, SleepState
from podgraft_engine.target.tracer import USER_64BIT_CS, Held, NotHeld, Signals, hold, signals_of

# On a node with many more runnable threads than processors an engine may not get one for some seconds.
IDLE_S: Final = 5
HELPER_START_S: Final = 1.0
TRIES: Final = 20
SILENT_TRIES: Final = 3
# The kernel gives the program memory right below what it has already: not where the mailbox should lie.
AWAY: Final = 2**36
AT_A_TIME: Final = 256
STACK_LOOK: Final = 65536
_TRAP_AND_RESUME_FLAGS: Final = 0x10100
_RUNNING: Final = 3


@dataclass(frozen=True)
class Borrowed:
    """The helper, and who was borrowed for it: None when a helper of an engine before us was adopted."""

    helper: Helper
    carrier: int | None
    held_us: float | None


def obtain_helper(process: Process, memory: Memory, blk: block.Block, generation: int) -> Borrowed:
    """Adopt the living helper of an earlier engine, or create one.

    generation is the highest that we ever gave to a thread: a carrier with a higher GS base uses it for itself.

    Raises:
        Refusal: BUSY, NO_CARRIER, GS_BASE_IN_USE; PodgraftError: HELPER_UNREACHABLE.
    """
    slots = blk.slots()
    if slots["mailbox"]:
        helper = adopt(process, slots["mailbox"], timeout=0)
        if helper:
            return Borrowed(helper, None, None)
    _wait_old_carrier_outside(process, memory, blk, slots["tid"])
    return _create(process, memory, blk, generation)


def _create(process: Process, memory: Memory, blk: block.Block, generation: int) -> Borrowed:
    reasons: list[str] = []
    silent = 0
    for attempt in range(TRIES):
        for tid in choose(process, blk):
            mailbox = gap_near(process.maps(), blk.address - AWAY, SIZE, 2**46)
            try:
                check_filters(process, tid)
                # Also because the first look costs ten times the next, and in that nobody should be held.
                _look(process, memory, blk, tid)
                root = blk.slots()
                with hold(tid) as held:
                    if held.regs.gs_base > generation:
                        raise Refusal(Reason.GS_BASE_IN_USE, f"thread {tid} has GS base {held.regs.gs_base:#x}")
                    _redirect(held, _look(process, memory, blk, tid), memory, blk, {**root, "mailbox": mailbox})
            except NotHeld as reason:
                reasons.append(f"thread {tid}: {reason.why}")
                continue
            helper = adopt(process, mailbox, timeout=HELPER_START_S)
            if helper is None:
                if not process.alive():
                    raise process.gone()
                silent += 1
                if silent < SILENT_TRIES:  # the program may have taken the place of the mailbox
                    _wait_old_carrier_outside(process, memory, blk, tid)
                    continue
                raise PodgraftError(
                    Reason.HELPER_UNREACHABLE, "the helper did not start: a limit on threads or memory is reached"
                )
            return Borrowed(helper, tid, held.held_us)
        time.sleep(0.001 * (attempt + 1))
    if not process.alive():
        raise process.gone()
    raise Refusal(Reason.NO_CARRIER, "; ".join(reasons[-3:]) or "no thread could be borrowed")


def check_filters(process: Process, tid: int) -> None:
    """Make sure that the seccomp filters of a thread let carrier and helper work; it is held to read them.

    Raises:
        Refusal: SECCOMP_FORBIDS. NotHeld: the thread could not be held now.
    """
    mode = process.status(tid).get("Seccomp", "0")
    if mode == "0":
        return
    with hold(tid) as held:
        programs = read_filters(held)
        address = held.regs.rip
    names = forbidden_calls(programs, address)
    if names:
        raise Refusal(Reason.SECCOMP_FORBIDS, f"a filter of thread {tid} forbids {', '.join(names)}")


def choose(process: Process, blk: block.Block | None) -> Iterator[int]:
    """Yield the threads by how harmless it is to borrow them; writers and stopped threads are left out.

    Of thousands no more are looked at than it takes to find good ones; those that are not come at the very end.
    """
    tids, last = process.threads(), []
    for first in range(0, len(tids), AT_A_TIME):
        ranked = _ranked(process, blk, tids[first : first + AT_A_TIME])
        yield from (tid for rank, tid in ranked if rank < 2 * _RUNNING)
        last += [(rank, tid) for rank, tid in ranked if rank >= 2 * _RUNNING]
    yield from (tid for _, tid in sorted(last))


def _ranked(process: Process, blk: block.Block | None, tids: list[int]) -> list[tuple[int, int]]:
    ranked = []
    for tid in tids:
        status = process.status(tid)
        if status.get("State", "Z")[0] not in "SR" or status.get("TracerPid", "0") != "0":
            continue
        sleep = process.sleeping_in(tid)
        handlers = int(status.get("SigCgt", "0"), 16) & ~int(status.get("SigBlk", "0"), 16)
        if blk is not None and sleep is not None and blk.contains(sleep.pc):
            continue
        rank = _rank_of_sleeper(sleep) if sleep is not None and sleep.in_call else _RUNNING
        if rank is not None:
            ranked.append((2 * rank + bool(handlers), tid))
    return sorted(ranked)


def _rank_of_sleeper(sleep: SleepState) -> int | None:
    if syscalls.partial_progress(sleep.nr, sleep.args):
        return None
    if sleep.nr in syscalls.EINTR_CLASS or sleep.nr in syscalls.EINTR_WITH_TIMEOUT:
        return _RUNNING + 1
    if sleep.nr in syscalls.NO_HANDLER_RESTART:
        return 2
    if sleep.nr in syscalls.RESTART_BLOCK:
        return 1
    return 0 if sleep.nr in syscalls.RESTARTS_AS_IS else None


def _look(process: Process, memory: Memory, blk: block.Block, tid: int) -> Signals:
    """Say what can be seen from outside against borrowing a thread now; return its signals where nothing can."""
    if not process.has(tid) or not memory.same_program(blk.address):
        raise NotHeld("it is no longer a thread of this program")
    signals = signals_of(tid)
    if signals.handler_due:
        raise NotHeld("a signal is pending")
    return signals


def _redirect(held: Held, signals: Signals, memory: Memory, blk: block.Block, slots: dict[str, int]) -> None:
    """Point a held thread at the carrier routine; from SETREGS on it needs nobody.

    slots: mailbox, and the root of the state.
    """
    regs = held.regs
    if regs.cs != USER_64BIT_CS:
        raise Refusal(Reason.UNSUPPORTED_TARGET, "the thread runs 32-bit code")
    if blk.contains(regs.rip):
        raise NotHeld("it is inside the block")
    if held.in_rseq_section(lambda address: int.from_bytes(memory.read(address, 8), "little")):
        raise NotHeld("it is inside a restartable sequence")
    if held.in_call and memory.read(regs.rip - 2, 2) != b"\x0f\x05":
        raise NotHeld("it is not behind a syscall instruction")
    mask = held.signal_mask()
    rax, rip = _resume(held)
    may_be_interrupted = held.in_call and held.rax in (
        syscalls.ERESTARTNOHAND,
        syscalls.ERESTART_RESTARTBLOCK,
        syscalls.EINTR,
    )
    blk.write_slots(
        {
            **{name: getattr(regs, name) for name in ("rcx", "rdx", "rsi", "rdi", "r8", "r10", "r11", "rsp")},
            "rax": rax,
            "rip": rip,
            "after": regs.rip,
            "flags": regs.eflags & ~_TRAP_AND_RESUME_FLAGS,
            "mask": mask,
            "ones": block.MASK64,
            "fsbase": regs.fs_base,
            "mode": int(may_be_interrupted and bool(signals.caught & ~mask)),
            "idle_s": IDLE_S,
            "tid": held.tid,
            **{name: slots[name] for name in ("mailbox", "state", "size", "check")},
        }
    )
    reached(Step.SLOTS_WRITTEN)
    regs.rip = blk.address + block.CARRIER
    regs.orig_rax = block.MASK64
    held.set_regs()
    reached(Step.REDIRECTED)
    # After SETREGS: a kill before it must not leave the thread deaf.
    held.block_signals()
    reached(Step.SIGNALS_BLOCKED)


def _resume(held: Held) -> tuple[int, int]:
    """Return rax and rip with which the thread goes on, as the kernel would choose them (handle_signal, do_signal)."""
    regs = held.regs
    if held.in_call:
        if held.rax in (syscalls.ERESTARTSYS, syscalls.ERESTARTNOINTR, syscalls.ERESTARTNOHAND):
            return held.orig_rax, regs.rip - 2
        if held.rax == syscalls.ERESTART_RESTARTBLOCK:
            return syscalls.RESTART_SYSCALL, regs.rip - 2
        number = syscalls.rewind(held.rax, held.orig_rax)
        if number is not None:
            return number, regs.rip - 2
    return regs.rax, regs.rip


def _returns_to(memory: Memory, blk: block.Block, sp: int) -> bool:
    """Tell whether a word on the stack points into the block: a signal handler may return there."""
    page = ctypes.create_string_buffer(block.PAGE)
    for start in range(sp & -8, (sp & -8) + STACK_LOOK, block.PAGE):
        if memory.peek(start, ctypes.addressof(page), block.PAGE) != block.PAGE:
            return False  # the end of the stack
        if any(blk.contains(word) for (word,) in struct.iter_unpack("<Q", page.raw)):
            return True
    return False


def _wait_old_carrier_outside(process: Process, memory: Memory, blk: block.Block, tid: int) -> None:
    """The slots may be written only when the carrier of the last attempt has read them all."""
    for _ in range(50):
        if not tid or not process.has(tid):
            return
        sleep = process.sleeping_in(tid)
        if sleep is not None and not blk.contains(sleep.pc) and not _returns_to(memory, blk, sleep.sp):
            return
        try:
            with hold(tid) as held:
                outside = not blk.contains(held.regs.rip) and not _returns_to(memory, blk, held.regs.rsp)
        except NotHeld as reason:
            if reason.gone:
                return
            outside = False
        if outside:
            return
        time.sleep(0.0002)
    raise Refusal(Reason.BUSY, f"thread {tid} is still in the carrier routine of an engine before us")
