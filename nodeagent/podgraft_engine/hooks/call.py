# SPDX-License-Identifier: GPL-2.0-only
"""Call one hook on the helper and watch over it: time that runs out or a fault ends the hook, not the program.

The helper is our own thread, so it may be traced as long as the hook runs. An engine that is killed meanwhile leaves a
hook that runs on by itself; the next engine watches over it again. Only a fault in that gap ends the program.
"""

import ctypes
import errno
import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from ptrace import PtraceError
from ptrace.binding.func import ptrace
from ptrace.binding.linux_struct import user_regs_struct

from podgraft_bundle.errors import PodgraftError, Reason
from podgraft_engine.helper.mailbox import Layout
from podgraft_engine.hooks.room import FINISHED, LEAVE, Room, Way
from podgraft_engine.steps import Step, reached
from podgraft_engine.target import syscalls
from podgraft_engine.target.proc import Process
from podgraft_engine.target.tracer import (
    PTRACE_GETREGS,
    PTRACE_INTERRUPT,
    PTRACE_SEIZE,
    PTRACE_SETREGS,
    PTRACE_SETSIGMASK,
    WALL,
    let_go,
)

RETURNED, OUT_OF_TIME, FAULT = 0, 1, 2
PTRACE_CONT: Final = 7
PTRACE_GETSIGINFO: Final = 0x4202
_STOP_TIMEOUT_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.0005
_TRIES: Final = 3
# What a fault raises; all else stays blocked. Blocked, the kernel would take the program's handler away to end it.
_FAULTS: Final = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS)
_MASK: Final = (2**64 - 1) & ~sum(1 << (number - 1) for number in _FAULTS)
_NO_CALL: Final = 2**64 - 1
_EFLAGS: Final = 0x202


@dataclass
class Fault:
    """Where and how a hook went wrong."""

    signal: str
    rip: int
    address: int


class Caller:
    """The helper, traced by us. Use as a context manager: it is let go at the end, wherever it is."""

    def __init__(self, process: Process, room: Room, tid: int) -> None:
        self._process = process
        self._room = room
        self._tid = tid
        self._foreign: list[int] = []
        self._stopped = False
        self.fault: Fault | None = None

    def __enter__(self) -> Self:
        try:
            ptrace(PTRACE_SEIZE, self._tid, 0, 0)
        except PtraceError as error:
            raise self._lost(error) from None
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stop()
            let_go(self._tid)
        except PodgraftError as error:
            # The thread or the process has ended, which is what the caller is about to tell.
            if error.reason not in (Reason.PROCESS_EXITED, Reason.HELPER_UNREACHABLE):
                raise
        for number in self._foreign:
            os.kill(self._process.pid, number)

    def enter(self, run: int, hook: int, mailbox: int, commit: Callable[[], None]) -> None:
        """Send the helper into a hook; `commit` makes the intent known before, and from then on it needs nobody.

        Args:
            run: number of this call.
            hook: address of the function.
            mailbox: address of the helper's mailbox.
            commit: writes the intent into the state.
        """
        regs = self._hold_at_rest(mailbox)
        self._room.post(run, hook, Way(regs.rbx, regs.r12, regs.fs_base, regs.rip))
        reached(Step.HOOK_POSTED)
        commit()
        mask = ctypes.c_uint64(_MASK)
        self._ptrace(PTRACE_SETSIGMASK, 8, ctypes.addressof(mask))
        regs.rip, regs.rsp, regs.fs_base = self._room.address, self._room.stack_top, self._room.thread
        regs.orig_rax, regs.eflags = _NO_CALL, _EFLAGS
        self._ptrace(PTRACE_SETREGS, 0, ctypes.addressof(regs))
        reached(Step.HOOK_ENTERED)
        self._go_on()
        reached(Step.HOOK_RUNNING)

    def inside(self) -> bool:
        """Tell whether the helper is in a hook that an engine before us has begun; it goes on."""
        self._stop()
        regs = self._regs()
        self._go_on()
        return self._room.holds(regs.rip, regs.rsp)

    def follow(self, limit_s: float) -> None:
        """Wait until the helper is out of the hook, however it ends.

        Raises:
            PodgraftError: PROCESS_EXITED, HELPER_UNREACHABLE when it does not come out: somebody changed its memory.
        """
        until = time.monotonic() + limit_s
        sent_out = 0
        while self._room.control().phase != FINISHED:
            status = self._poll()
            if status is not None:
                sent_out += self._answer(status)
            elif time.monotonic() > until:
                self._stop()
                self._send_out(OUT_OF_TIME)
                sent_out += 1
                until = time.monotonic() + _STOP_TIMEOUT_S
            else:
                time.sleep(_LOOK_EVERY_S)
            if sent_out > _TRIES:
                raise PodgraftError(Reason.HELPER_UNREACHABLE, "the helper does not find the way out of a hook")
        reached(Step.HOOK_ENDED)

    def _answer(self, status: int) -> bool:
        """Deal with a stop: a fault ends the hook (True); what came from elsewhere is for another thread."""
        number = os.WSTOPSIG(status)
        if status >> 16:  # an event stop: somebody stops the process, but this thread is not the program's
            self._go_on()
            return False
        info = ctypes.create_string_buffer(128)
        self._ptrace(PTRACE_GETSIGINFO, 0, ctypes.addressof(info))
        code, address = struct.unpack_from("<i", info, 8)[0], struct.unpack_from("<Q", info, 16)[0]
        if code <= 0:  # sent by a process (sigaction(2), si_code)
            self._foreign.append(number)
            self._go_on()
            return False
        self.fault = Fault(signal.Signals(number).name, self._regs().rip, address)
        self._send_out(FAULT)
        return True

    def _send_out(self, outcome: int) -> None:
        """Let the stopped helper leave the hook, unless it is on its way already."""
        regs = self._regs()
        if self._room.holds(regs.rip, regs.rsp) and not self._room.leaves(regs.rip):
            regs.rip, regs.rsp = self._room.address + LEAVE, self._room.stack_top
            regs.rax, regs.rdx, regs.orig_rax, regs.eflags = 0, outcome, _NO_CALL, _EFLAGS
            self._ptrace(PTRACE_SETREGS, 0, ctypes.addressof(regs))
        self._go_on()

    def _hold_at_rest(self, mailbox: int) -> user_regs_struct:
        """Stop the helper where it waits for a command: nothing of an earlier one is under way there."""
        until = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < until:
            self._stop()
            regs = self._regs()
            waits = ctypes.c_int32(regs.orig_rax).value in (syscalls.FUTEX, syscalls.RESTART_SYSCALL)
            if waits and (regs.rdi, regs.rsi) == (mailbox + Layout.command.offset, 0):
                return regs
            self._go_on()
            time.sleep(_LOOK_EVERY_S)
        raise PodgraftError(Reason.HELPER_UNREACHABLE, "the helper does not come to rest")

    def _stop(self) -> None:
        if self._stopped:
            return
        try:
            ptrace(PTRACE_INTERRUPT, self._tid)
        except PtraceError as error:
            raise self._lost(error) from None
        until = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < until:
            if self._poll() is not None:
                return
            time.sleep(_LOOK_EVERY_S / 10)
        raise PodgraftError(Reason.HELPER_UNREACHABLE, f"the helper did not stop in {_STOP_TIMEOUT_S} s")

    def _poll(self) -> int | None:
        """Return the wait status of a stop, None while the helper runs."""
        try:
            tid, status = os.waitpid(self._tid, os.WNOHANG | WALL)
        except ChildProcessError:
            raise self._ended() from None
        if tid == 0:
            return None
        if not os.WIFSTOPPED(status):
            raise self._ended()
        self._stopped = True
        return status

    def _regs(self) -> user_regs_struct:
        regs = user_regs_struct()
        self._ptrace(PTRACE_GETREGS, 0, ctypes.addressof(regs))
        return regs

    def _go_on(self) -> None:
        self._ptrace(PTRACE_CONT, 0, 0)
        self._stopped = False

    def _ptrace(self, request: int, address: int, data: int) -> None:
        try:
            ptrace(request, self._tid, address, data)
        except PtraceError as error:
            raise self._lost(error) from None

    def _lost(self, error: PtraceError) -> PodgraftError:
        if error.errno == errno.ESRCH:
            return self._ended()
        if error.errno == errno.EPERM:
            return PodgraftError(Reason.BUSY, "another tracer holds the helper, where it should call a hook")
        return PodgraftError(Reason.INTERNAL, f"ptrace of the helper: {os.strerror(error.errno or 0)}")

    def _ended(self) -> PodgraftError:
        if not self._process.alive():
            return self._process.gone()
        return PodgraftError(Reason.HELPER_UNREACHABLE, "the helper ended where it should call a hook")
