# SPDX-License-Identifier: GPL-2.0-only
"""The mailbox: a shared page through which the helper in the target takes system calls, one at a time.

Layout (asm/block.S): 0x00 magic, 0x08 command number, 0x0c last done, 0x10 closed, 0x14 tid, 0x18 result,
0x20 call number and six arguments. The helper takes a command or closes, never both: it closes by compare-and-swap on
the command word and then sets `closed`, so a command posted to a closed mailbox was never executed.
"""

import ctypes
import fcntl
import mmap
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_engine.helper import block as block_module
from podgraft_engine.steps import Step, reached
from podgraft_engine.target.maps import Maps
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Process, denied

SIZE: Final = 4096
CALL_TIMEOUT_S: Final = 5.0
TEND_AFTER_S: Final = 0.5
CLOSED_WORD: Final = 0xFFFFFFFF
_GETPID: Final = 39
_FUTEX: Final = 202
_FUTEX_WAKE: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


class HelperLeftError(PodgraftError):
    """The helper was idle for too long and has left; what was asked of it last was not done. Another one can go on."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.HELPER_UNREACHABLE, detail)


class Layout(ctypes.Structure):
    """The head of the shared page."""

    _fields_ = [
        ("magic", ctypes.c_char * 8),
        ("command", ctypes.c_uint32),
        ("done", ctypes.c_uint32),
        ("closed", ctypes.c_uint32),
        ("tid", ctypes.c_uint32),
        ("result", ctypes.c_int64),
        ("call", ctypes.c_uint64 * 7),
    ]


class Helper:
    """The helper thread as its mailbox shows it; holding it locks the process against other engines.

    address: where the mailbox lies in the target.
    """

    def __init__(self, process: Process, address: int, fd: int, page: mmap.mmap) -> None:
        self._process = process
        self.address = address
        self._fd = fd
        self._page = page
        self._box = Layout.from_buffer(page)
        self._called_at = time.monotonic()
        self.tid = _tid_here(process, int(self._box.tid))

    def call(self, number: int, *args: int) -> int:
        """Execute one system call in the target; return its raw result (negative errno on failure).

        Raises:
            PodgraftError: HELPER_UNREACHABLE when the helper has left (the call was not executed) or does not
                answer, PROCESS_EXITED.
        """
        self._settle()
        sequence = int(self._box.done) + 1
        for index, value in enumerate((number, *args, *([0] * (6 - len(args))))):
            self._box.call[index] = value & (2**64 - 1)
        reached(Step.COMMAND_WRITTEN)
        self._box.command = sequence
        reached(Step.COMMAND_POSTED)
        self._wake()
        reached(Step.HELPER_WOKEN)
        self._wait_done(sequence)
        self._called_at = time.monotonic()
        reached(Step.COMMAND_DONE)
        return int(self._box.result)

    def answers(self) -> bool:
        """Tell whether the helper takes commands; what an engine before us had posted is done by then.

        That engine may have been killed between posting and waking: its command would run when the idle time is over,
        after we have read the memory map and before we rely on it.

        Raises:
            PodgraftError: HELPER_UNREACHABLE when the helper is there and does not answer, PROCESS_EXITED.
        """
        self._wake()
        try:
            self.keep_alive()
        except HelperLeftError:
            return False
        return True

    def keep_alive(self) -> None:
        """Give the helper something to do, so that its idle time starts anew."""
        self.call(_GETPID)

    def tend(self) -> None:
        """Keep the helper alive if it is time; cheap enough to be called for each of thousands of threads."""
        if time.monotonic() - self._called_at > TEND_AFTER_S:
            self.keep_alive()

    def _settle(self) -> None:
        """Wait for a command that an engine before us had posted."""
        if self._box.closed or self._box.command == CLOSED_WORD:
            raise HelperLeftError("the helper has left: it had no work for its idle time")
        if self._box.command != self._box.done:
            self._wait_done(int(self._box.command))

    def _wait_done(self, sequence: int) -> None:
        start = time.perf_counter()
        while self._box.done != sequence:
            waited = time.perf_counter() - start
            if self._box.closed:
                raise HelperLeftError("the helper left before it took the command")
            if waited > CALL_TIMEOUT_S:
                if not self._process.alive():
                    raise self._process.gone()
                raise PodgraftError(Reason.HELPER_UNREACHABLE, f"no answer from the helper in {CALL_TIMEOUT_S} s")
            if waited > 0.0005:
                time.sleep(0.0001)

    def _wake(self) -> None:
        address = ctypes.addressof(self._box) + Layout.command.offset
        _libc.syscall(_FUTEX, ctypes.c_void_p(address), _FUTEX_WAKE, 1, None, None, 0)

    def dismiss(self) -> None:
        """Ask the helper to leave, and wait until it has."""
        if not self._box.closed:
            self._box.command = CLOSED_WORD
            reached(Step.HELPER_DISMISSED)
            self._wake()
        start = time.perf_counter()
        while self.tid in self._process.threads() and time.perf_counter() - start < 1.0:
            time.sleep(0.0005)

    def close(self) -> None:
        """Let go of the mailbox (and the lock); a helper that was not dismissed leaves by itself when idle."""
        del self._box
        with suppress(BufferError):  # an error on its way up may still refer to the page; the process ends soon
            self._page.close()
        os.close(self._fd)


def _open(process: Process, address: int, until: float) -> int | None:
    """Open the shared page as a file, by tid: the files of an exited main thread are empty."""
    path = Path("/proc") / str(process.living_thread()) / "map_files" / f"{address:x}-{address + SIZE:x}"
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            break
        except (FileNotFoundError, ProcessLookupError):
            if time.perf_counter() > until:
                return None
            time.sleep(0.00002)
        except PermissionError:
            raise denied(process.pid) from None
    if not _is_mailbox(process, address) or os.fstat(fd).st_size != SIZE:
        os.close(fd)
        return None
    return fd


def _is_mailbox(process: Process, address: int) -> bool:
    """Tell whether shared anonymous memory of one page lies there: the slots could name any file of the target."""
    mapping = Maps(process).at(address)
    return (
        mapping is not None
        and mapping.start == address
        and mapping.end == address + SIZE
        and mapping.perms == "rw-s"
        and mapping.path == "/dev/zero (deleted)"
    )


def living_helper(process: Process, memory: Memory, address: int) -> int:
    """Return the thread behind the mailbox at an address, whether it answers or not; 0 when there is none."""
    if not address or not _is_mailbox(process, address):
        return 0
    tid = int.from_bytes(memory.read(address + Layout.tid.offset, 4), "little")
    return _tid_here(process, tid)


def _tid_here(process: Process, tid: int) -> int:
    """Return our number for a thread that knows itself as `tid`: a container has a pid name space of its own.

    The last number of NSpid (proc_pid_status(5)) is the thread's own; 0 when the thread has ended.
    """
    # Most often both numbers are the same one.
    tids = [tid, *process.threads()] if process.has(tid) else process.threads()
    known = ((seen, process.status(seen).get("NSpid").split()) for seen in tids)
    return next((seen for seen, numbers in known if numbers and int(numbers[-1]) == tid), 0)


def adopt(process: Process, address: int, *, timeout: float) -> Helper | None:
    """Open the mailbox at an address, if a helper lives there.

    Raises:
        Refusal: BUSY when another engine has it, PERMISSION_DENIED without CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
    """
    if timeout == 0 and not _is_mailbox(process, address):
        return None
    start = time.perf_counter()
    fd = _open(process, address, start + timeout)
    if fd is None:
        return None
    page = mmap.mmap(fd, SIZE, mmap.MAP_SHARED)
    while page[:8] != block_module.MAGIC:
        if time.perf_counter() - start > timeout:
            page.close()
            os.close(fd)
            return None
        time.sleep(0.00002)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        page.close()
        os.close(fd)
        raise Refusal(Reason.BUSY, f"another engine works on process {process.pid}") from None
    reached(Step.MAILBOX_LOCKED)
    helper = Helper(process, address, fd, page)
    try:
        ready = helper.answers()
    except PodgraftError:
        helper.close()
        raise
    if ready:
        return helper
    helper.close()
    return None
