# SPDX-License-Identifier: GPL-2.0-only
"""The memory of the target, through /proc/PID/mem and process_vm_readv; nobody is stopped for it."""

import ctypes
import errno
import os

from podgraft_bundle.errors import PodgraftError, Reason
from podgraft_engine.target.layout import PAGE
from podgraft_engine.target.proc import Process, denied

_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


_libc.process_vm_readv.restype = ctypes.c_ssize_t


class Memory:
    """Reads and writes the target; writes reach read-only private pages as copies (FOLL_FORCE, mm/gup.c)."""

    def __init__(self, process: Process) -> None:
        self._process = process
        tid = process.living_thread()
        self._tid = tid
        try:
            self._fd = os.open(process.root / "task" / str(tid) / "mem", os.O_RDWR | os.O_CLOEXEC)
            self._pagemap = os.open(process.root / "task" / str(tid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            raise denied(process.pid) from None
        except (FileNotFoundError, ProcessLookupError):
            raise process.gone() from None

    def read(self, address: int, size: int) -> bytes:
        """Read exactly size bytes.

        Raises:
            PodgraftError: PROCESS_EXITED when the process has ended, INTERNAL when nothing is mapped there.
        """
        try:
            data = os.pread(self._fd, size, address)
        except OSError as error:
            raise self._error("read", address, size, error) from None
        if len(data) != size:
            raise self._error("read", address, size, OSError(errno.EIO, "short read"))
        return data

    def read_some(self, address: int, size: int) -> bytes:
        """Read what can be read from an address on, at most size bytes; some of it may not be mapped."""
        try:
            return os.pread(self._fd, size, address)
        except (OSError, OverflowError):
            return b""

    def write(self, address: int, data: bytes) -> None:
        """Write all of data; errors as for read."""
        try:
            written = os.pwrite(self._fd, data, address)
        except OSError as error:
            raise self._error("write", address, len(data), error) from None
        if written != len(data):
            raise self._error("write", address, len(data), OSError(errno.EIO, "short write"))

    def same_program(self, address: int) -> bool:
        """Tell whether the process still has the address space that we opened: an exec or a reused pid ends that."""
        try:
            return len(os.pread(self._fd, 1, address)) == 1
        except OSError:
            return False

    def peek(self, address: int, to: int, size: int) -> int:
        """Copy up to size bytes to an address of ours with one system call; return how many, or -1."""
        local = _Iovec(to, size)
        remote = _Iovec(address, size)
        return int(_libc.process_vm_readv(self._tid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))

    def anonymous(self, address: int) -> bool:
        """Tell whether the page is present and no longer the file's (pagemap bits 63 and 61)."""
        raw = os.pread(self._pagemap, 8, address // 4096 * 8)
        if len(raw) != 8:
            raise self._process.gone()
        entry = int.from_bytes(raw, "little")
        swapped, present, file_page = entry >> 62 & 1, entry >> 63, entry >> 61 & 1
        return bool((present and not file_page) or (swapped and not file_page))

    def held_pages(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the runs of pages in [start, end) that are in memory or swapped out (pagemap bits 63 and 62)."""
        raw = os.pread(self._pagemap, (end - start) // PAGE * 8, start // PAGE * 8)
        runs: list[tuple[int, int]] = []
        if raw.count(0) == len(raw):
            return runs
        for index, entry in enumerate(memoryview(raw[: len(raw) // 8 * 8]).cast("Q")):
            if entry >> 62:
                page = start + index * PAGE
                if runs and runs[-1][1] == page:
                    runs[-1] = (runs[-1][0], page + PAGE)
                else:
                    runs.append((page, page + PAGE))
        return runs

    def _error(self, verb: str, address: int, size: int, error: OSError) -> PodgraftError:
        if not self._process.alive():
            return self._process.gone()
        return PodgraftError(
            Reason.INTERNAL,
            f"cannot {verb} {size} bytes at {address:#x} of process {self._process.pid}: {error.strerror}",
        )
