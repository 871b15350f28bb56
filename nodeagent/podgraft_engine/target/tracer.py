# SPDX-License-Identifier: GPL-2.0-only
"""Hold one thread, look, change a register, let it go (ptrace(2), PTRACE_SEIZE; never PTRACE_O_EXITKILL)."""

import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ptrace import PtraceError
from ptrace.binding.func import ptrace
from ptrace.binding.linux_struct import user_regs_struct

from podgraft_bundle.errors import PodgraftError, Reason
from podgraft_engine.steps import Step, reached
from podgraft_engine.target import syscalls
from podgraft_engine.target.priority import raised
from podgraft_engine.target.proc import read_small

PTRACE_POKEUSER: Final = 6
PTRACE_GETREGS: Final = 12
PTRACE_SETREGS: Final = 13
PTRACE_DETACH: Final = 17
PTRACE_SEIZE: Final = 0x4206
PTRACE_INTERRUPT: Final = 0x4207
PTRACE_GETSIGMASK: Final = 0x420A
PTRACE_SETSIGMASK: Final = 0x420B
PTRACE_GET_RSEQ_CONFIGURATION: Final = 0x420F
PTRACE_EVENT_STOP: Final = 128
WALL: Final = 0x40000000
USER_64BIT_CS: Final = 0x33

_RseqConfiguration: Final = ctypes.c_uint64 * 3
STOP_TIMEOUT_S: Final = 1.0
# One that is runnable stops as soon as it gets a processor; it runs on until then, and nobody waits for it but we.
STARVED_TIMEOUT_S: Final = 20.0
SPIN_S: Final = 0.0003


class NotHeld(Exception):
    """The thread could not be held now; nothing happened to it. `why` is for humans, `gone` when it has ended."""

    def __init__(self, why: str, *, gone: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.gone = gone


@dataclass
class Held:
    """A thread that is stopped for a moment. held_us is filled in when it was let go."""

    tid: int
    regs: user_regs_struct
    held_us: float = 0.0

    @property
    def in_call(self) -> bool:
        """Tell whether the stop interrupted a system call."""
        return ctypes.c_int32(self.regs.orig_rax).value != -1

    @property
    def rax(self) -> int:
        """Return rax as a signed number."""
        return ctypes.c_int64(self.regs.rax).value

    @property
    def orig_rax(self) -> int:
        """Return the number of the interrupted call, -1 for none."""
        return ctypes.c_int32(self.regs.orig_rax).value

    def set_generation(self, generation: int) -> None:
        """Write the GS base, the thread's generation number; touches no other register."""
        ptrace(PTRACE_POKEUSER, self.tid, user_regs_struct.gs_base.offset, generation)
        self.regs.gs_base = generation
        reached(Step.GENERATION_SET)

    def set_regs(self) -> None:
        """Write all registers in one call."""
        ptrace(PTRACE_SETREGS, self.tid, 0, ctypes.addressof(self.regs))

    def signal_mask(self) -> int:
        """Return the blocked signals; inside sigsuspend and ppoll the mask that comes back after the call."""
        mask = ctypes.c_uint64()
        ptrace(PTRACE_GETSIGMASK, self.tid, 8, ctypes.addressof(mask))
        return mask.value

    def block_signals(self) -> None:
        """Block all signals."""
        mask = ctypes.c_uint64(2**64 - 1)
        ptrace(PTRACE_SETSIGMASK, self.tid, 8, ctypes.addressof(mask))

    def in_rseq_section(self, read_u64: Callable[[int], int]) -> bool:
        """Tell whether rip lies in a restartable sequence, which a redirection would skip (kernel/rseq.c)."""
        config = _RseqConfiguration()
        try:
            ptrace(PTRACE_GET_RSEQ_CONFIGURATION, self.tid, ctypes.sizeof(config), ctypes.addressof(config))
        except PtraceError:
            return False
        if not config[0]:
            return False
        section = read_u64(config[0] + 8)
        if not section:
            return False
        start, length = read_u64(section + 8), read_u64(section + 16)
        return bool(start <= self.regs.rip < start + length)

    def rewind_call(self) -> None:
        """Let an EINTR-class call be repeated, as if nobody had looked (invariant 10)."""
        number = syscalls.rewind(self.rax, self.orig_rax) if self.in_call else None
        # With a handler about to run the call ends with EINTR for the program's own reasons.
        if number is not None and not signals_of(self.tid).handler_due:
            self.regs.rax = number
            self.regs.rip -= 2
            self.set_regs()
            reached(Step.CALL_REWOUND)


@dataclass
class Holds:
    """All holds of this engine, also those that came to nothing."""

    longest_us: float = 0.0


holds = Holds()


@dataclass(frozen=True)
class Signals:
    """Masks of a thread. pending: for it or its process, and not blocked; caught: those with a handler."""

    pending: int
    caught: int

    @property
    def handler_due(self) -> bool:
        """Tell whether a handler is about to run."""
        return bool(self.pending & self.caught)


def signals_of(tid: int) -> Signals:
    """Read the masks (proc(5), status); nothing is pending for a thread that has ended."""
    text = read_small(f"/proc/{tid}/status")
    own, shared, blocked, caught = (_mask(text, key) for key in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigCgt"))
    return Signals((own | shared) & ~blocked, caught)


def _mask(status: bytes, key: bytes) -> int:
    start = status.find(b"\n" + key + b":\t") + len(key) + 3
    return int(status[start : start + 16], 16) if status else 0


@contextmanager
def hold(tid: int) -> Iterator[Held]:
    """Stop one thread, give its registers, and let it go as the kernel would have (EINTR-class calls rewound).

    held_us runs from the stop, or from the last moment at which the thread was not seen stopped, to the release.

    Raises:
        NotHeld: it is traced, has ended, is in a signal stop or does not stop within a second.
    """
    with raised() as at_once:
        _seize(tid)
        reached(Step.SEIZED)
        try:
            ptrace(PTRACE_INTERRUPT, tid)
        except PtraceError as error:
            raise _not_held(error) from None
        reached(Step.INTERRUPTED)
        stopped = _wait_stop(tid, at_once=at_once)
        reached(Step.STOPPED)
        held = Held(tid, user_regs_struct())
        try:
            ptrace(PTRACE_GETREGS, tid, 0, ctypes.addressof(held.regs))
            reached(Step.LOOKED)
            try:
                yield held
            finally:
                held.rewind_call()
        except PtraceError as error:
            raise _not_held(error) from None
        finally:
            let_go(tid)
            held.held_us = (time.perf_counter() - stopped) * 1e6
            holds.longest_us = max(holds.longest_us, held.held_us)
            reached(Step.RELEASED)


def let_go(tid: int, signo: int = 0) -> None:
    """Detach; a thread that ended meanwhile is fine."""
    try:
        ptrace(PTRACE_DETACH, tid, 0, signo)
    except PtraceError as error:
        if error.errno != errno.ESRCH:
            raise


def _seize(tid: int) -> None:
    try:
        ptrace(PTRACE_SEIZE, tid, 0, 0)
    except PtraceError as error:
        raise _not_held(error) from None


def _not_held(error: PtraceError) -> NotHeld:
    if error.errno == errno.ESRCH:
        return NotHeld("the thread has ended", gone=True)
    if error.errno == errno.EPERM:
        return NotHeld("another tracer holds the thread, or the kernel forbids tracing it")
    return NotHeld(f"ptrace: {os.strerror(error.errno or 0)}")


def _wait_stop(tid: int, *, at_once: bool) -> float:
    """Wait for the event stop of PTRACE_INTERRUPT; return a time not later than the stop (time.perf_counter).

    A signal stop is passed on unharmed.
    """
    try:
        status, stopped = _stop_of(tid, at_once=at_once)
    except ChildProcessError:
        raise NotHeld("the thread has ended", gone=True) from None
    if not os.WIFSTOPPED(status):
        raise NotHeld("the thread has ended", gone=True)
    if status >> 16 != PTRACE_EVENT_STOP or os.WSTOPSIG(status) != signal.SIGTRAP:
        let_go(tid, 0 if status >> 16 else os.WSTOPSIG(status))
        raise NotHeld("a signal or a stop of the process was under way")
    return stopped


def _stop_of(tid: int, *, at_once: bool) -> tuple[int, float]:
    """Wait for a stop; return its status, and a time not later than it."""
    until = time.perf_counter() + STARVED_TIMEOUT_S
    while True:
        with suppress(_GiveUp):
            return _sleep_until_stop(tid) if at_once else _poll_until_stop(tid)
        if not _is_runnable(tid) or time.perf_counter() > until:
            # In D state neither INTERRUPT nor DETACH work; only our own end releases it (carrier findings, section 2).
            why = "it sleeps uninterruptibly, or gets no processor"
            raise PodgraftError(Reason.BUSY, f"thread {tid} did not stop: {why}")


def _is_runnable(tid: int) -> bool:
    """Tell whether a thread runs or waits for a processor (proc_pid_stat(5), field 3)."""
    with suppress(FileNotFoundError, ProcessLookupError):
        text = Path(f"/proc/{tid}/stat").read_text(errors="replace")
        return text[text.rindex(")") + 2] == "R"
    return False


def _sleep_until_stop(tid: int) -> tuple[int, float]:
    """With real-time priority the stop wakes us at once; a spinning engine would keep the thread from its processor."""
    signal.setitimer(signal.ITIMER_REAL, STOP_TIMEOUT_S)
    try:
        _, status = os.waitpid(tid, WALL)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return status, time.perf_counter()


def _poll_until_stop(tid: int) -> tuple[int, float]:
    """Without it we may be woken late, so look again and again: the stop came after the last look that saw none."""
    began = last_look = time.perf_counter()
    while True:
        pid, status = os.waitpid(tid, os.WNOHANG | WALL)
        if pid == tid:
            return status, last_look
        last_look = time.perf_counter()
        if last_look - began > STOP_TIMEOUT_S:
            raise _GiveUp
        if last_look - began < SPIN_S:
            os.sched_yield()
        else:
            time.sleep(0.00002)


class _GiveUp(Exception):
    """The thread did not stop in time."""


def _give_up(*_: object) -> None:
    raise _GiveUp


signal.signal(signal.SIGALRM, _give_up)
