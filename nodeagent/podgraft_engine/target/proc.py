# SPDX-License-Identifier: GPL-2.0-only
"""What /proc tells of a process and its threads, read without touching them (proc(5))."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from podgraft_bundle.errors import PodgraftError, Reason, Refusal

MAX_LISTINGS = 1000
SMALL_FILE = 16384
AT_HWCAP2 = 26
HWCAP2_FSGSBASE = 1 << 1
_GET_ROBUST_LIST = 274
_libc = ctypes.CDLL(None)


# A process of 10,000 threads has 20,000 lines of maps: a tuple is made in a quarter of the time.
class Mapping(NamedTuple):
    """One line of /proc/PID/maps; addresses and offset in bytes."""

    start: int
    end: int
    perms: str
    offset: int
    device: str
    inode: int
    path: str


@dataclass(frozen=True)
class SleepState:
    """One reading of /proc/PID/task/TID/syscall: nr (-1 outside of a call), six arguments, stack pointer and pc."""

    nr: int
    args: tuple[int, ...]
    sp: int
    pc: int

    @property
    def in_call(self) -> bool:
        """Tell whether it sleeps in a system call, and not in a page fault or a stop."""
        return self.nr >= 0


@dataclass(frozen=True)
class Thread:
    """Name, state letter and start time (clock ticks since boot) of one thread."""

    name: str
    state: str
    start_time: int

    @property
    def runs(self) -> bool:
        """Tell whether it is more than a zombie."""
        return self.state not in "ZXx"


class StatusFile:
    """One reading of /proc/PID/task/TID/status, false when the thread has ended.

    Some 60 lines, of which one or two are wanted for each of many threads: a line is looked for when it is asked for.
    """

    def __init__(self, text: str) -> None:
        self._text = "\n" + text if text else ""

    def __bool__(self) -> bool:
        return bool(self._text)

    def get(self, key: str, missing: str = "") -> str:
        """Return the value of a line, `missing` when there is none."""
        start = self._text.find(f"\n{key}:")
        if start < 0:
            return missing
        start += len(key) + 2
        return self._text[start : self._text.index("\n", start)].strip()


class Process:
    """A process by pid, guarded against pid reuse by its start time.

    Raises:
        Refusal: NO_SUCH_PROCESS when there is none, or it is not the one that was meant.
    """

    def __init__(self, pid: int, start_time: int | None = None) -> None:
        self.pid = pid
        self.root = Path("/proc") / str(pid)
        try:
            self.start_time = start_time_of(self.root / "stat")
        except (FileNotFoundError, ProcessLookupError):
            raise Refusal(Reason.NO_SUCH_PROCESS, f"there is no process {pid}") from None
        if start_time is not None and start_time != self.start_time:
            raise Refusal(Reason.NO_SUCH_PROCESS, f"pid {pid} is another process now")
        if self.status(pid).get("Tgid") != str(pid):
            raise Refusal(Reason.NO_SUCH_PROCESS, f"{pid} is a thread, not a process")

    def alive(self) -> bool:
        """Tell whether the same process still runs; its main thread may have ended before the others."""
        main = self.thread(self.pid)
        if main is None or main.start_time != self.start_time:
            return False
        return main.runs or any(t is not None and t.runs for t in map(self.thread, self.threads()))

    def gone(self) -> PodgraftError:
        """Return the error for a process that ended meanwhile."""
        return PodgraftError(Reason.PROCESS_EXITED, f"process {self.pid} has ended")

    def living_thread(self) -> int:
        """Return a tid whose /proc files are usable: the main thread's, but maps of an exited one are empty."""
        for tid in (self.pid, *self.threads()):
            thread = self.thread(tid)
            if thread is not None and thread.runs:
                return tid
        raise self.gone()

    def every_thread(self) -> list[int]:
        """List the thread ids, and none is missed: a thread that exits during a listing ends it (fs/proc, next_tid).

        Raises:
            PodgraftError: PROCESS_EXITED, BUSY when threads come and go too fast to be listed.
        """
        for _ in range(MAX_LISTINGS):
            before, tids, after = self._thread_count(), self.threads(), self._thread_count()
            if before == len(tids) == after:
                return tids
            if not self.alive():
                raise self.gone()
        raise PodgraftError(Reason.BUSY, f"the threads of process {self.pid} come and go too fast to be listed")

    def _thread_count(self) -> int:
        return int(self.status(self.pid).get("Threads", "0"))

    def start_stack(self) -> int:
        """Return the address where the main thread's stack begins (field 28 of stat), 0 when it cannot be known."""
        try:
            text = (self.root / "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return int(text[text.rindex(")") + 2 :].split()[25])

    def has(self, tid: int) -> bool:
        """Tell whether a thread belongs to this process now."""
        # Not pathlib, which takes three times as long: the thread is held meanwhile.
        return os.access(f"/proc/{self.pid}/task/{tid}", os.F_OK)

    def thread(self, tid: int) -> "Thread | None":
        """Return what stat tells of a thread, None when it has ended."""
        text = self._read(tid, "stat")
        if not text:
            return None
        end = text.rindex(")")
        fields = text[end + 2 :].split()
        return Thread(text[text.index("(") + 1 : end], fields[0], int(fields[19]))

    def threads(self) -> list[int]:
        """List the thread ids; where one ends meanwhile, others may be missing (every_thread)."""
        try:
            return sorted(map(int, os.listdir(self.root / "task")))  # noqa: PTH208 (a Path for each thread)
        except (FileNotFoundError, ProcessLookupError):
            return []

    def comm(self, tid: int) -> str:
        """Return the name of a thread, empty when it has ended."""
        return self._read(tid, "comm").rstrip("\n")

    def status(self, tid: int) -> StatusFile:
        """Return /proc/PID/task/TID/status."""
        return StatusFile(self._read(tid, "status"))

    def state(self, tid: int) -> str | None:
        """Return the one-letter state of a thread (R, S, D, T, t, Z, X), None when it has ended."""
        text = self.status(tid).get("State")
        return text[0] if text else None

    def sleeping_in(self, tid: int) -> SleepState | None:
        """Say where a thread sleeps in the kernel; None when it runs."""
        words = self._read(tid, "syscall").split()
        if not words or words[0] == "running":
            return None
        numbers = [int(word, 0) for word in words]
        if numbers[0] == -1:
            return SleepState(-1, (), numbers[1], numbers[2])
        return SleepState(numbers[0], tuple(numbers[1:7]), numbers[7], numbers[8])

    def control_block(self, tid: int) -> int | None:
        """Return an address in a thread's control block; None when the kernel or the C library does not tell.

        glibc tells the kernel of each thread's list of robust mutexes, which is in it (get_robust_list(2)).
        """
        head, size = ctypes.c_void_p(), ctypes.c_size_t()
        failed = _libc.syscall(_GET_ROBUST_LIST, tid, ctypes.byref(head), ctypes.byref(size))
        return None if failed else head.value

    def wait_channel(self, tid: int) -> str:
        """Return the kernel's function in which a thread sleeps (proc(5), wchan), "0" when that is not told."""
        return self._read(tid, "wchan")

    def limit(self, name: str) -> int | None:
        """Return the soft limit of that name in /proc/PID/limits; None when there is none."""
        for line in self._read(self.living_thread(), "limits").splitlines():
            if line.startswith(name):
                value = line.removeprefix(name).split()[0]
                return int(value) if value.isdigit() else None
        return None

    def smaps(self) -> Iterator[bytes]:
        """Yield the lines of /proc/PID/smaps; a mapping is looked at by the kernel when its lines are asked for."""
        path = self.root / "task" / str(self.living_thread()) / "smaps"
        with suppress(FileNotFoundError, ProcessLookupError), path.open("rb", buffering=512) as lines:
            yield from lines

    def cpu_seconds(self, tid: int) -> float | None:
        """Return how long a thread has had a processor; None when the kernel does not tell (proc(5), schedstat)."""
        words = self._read(tid, "schedstat").split()
        return int(words[0]) / 1e9 if words else None

    def has_run(self, tid: int, seconds: float, since: float | None) -> bool:
        """Tell whether a thread has had a processor for so long since it was at `since`; in doubt yes."""
        now = self.cpu_seconds(tid)
        return now is None or since is None or now - since >= seconds

    def maps(self) -> list[Mapping]:
        """Return the memory map, in order of address."""
        return [parse_mapping(line) for line in self.map_text().rstrip("\n").split("\n")]

    def map_text(self) -> str:
        """Return /proc/PID/maps as it is; target/maps.py finds single mappings in it."""
        return self._read_shared("maps").decode(errors="replace")

    def _read_shared(self, name: str) -> bytes:
        """Read what all threads share, by one that runs; by another where that one ends meanwhile."""
        for _ in range(MAX_LISTINGS):
            path = self.root / "task" / str(self.living_thread()) / name
            try:
                content = path.read_bytes()
            except PermissionError:
                raise denied(self.pid) from None
            except (FileNotFoundError, ProcessLookupError):
                continue
            if content:  # the address space of a thread goes before the thread
                return content
        raise self.gone()

    def _read(self, tid: int, name: str) -> str:
        """Read one small file of a thread, empty when it has ended."""
        return read_small(f"/proc/{self.pid}/task/{tid}/{name}").decode(errors="replace")

    def auxv(self) -> dict[int, int]:
        """Return the auxiliary vector (getauxval(3))."""
        raw = self._read_shared("auxv")
        words = memoryview(raw[: len(raw) // 16 * 16]).cast("Q")
        return {words[i]: words[i + 1] for i in range(0, len(words), 2)}


def read_small(path: str) -> bytes:
    """Read one small file of a thread at once, empty when it has ended.

    Not by pathlib, which takes twice the time: all threads are passed over, and one of them may be held meanwhile.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return b""
    try:
        text = part = os.read(file, SMALL_FILE)
        while len(part) == SMALL_FILE:  # a long list of groups
            part = os.read(file, SMALL_FILE)
            text += part
    except ProcessLookupError:
        return b""
    finally:
        os.close(file)
    return text


def parse_mapping(line: str) -> Mapping:
    """Parse one line of maps (proc_pid_maps(5)); the kernel writes a newline in a path as an octal number."""
    place, perms, offset, device, inode, name = line.split(" ", 5)
    start, _, end = place.partition("-")
    return Mapping(int(start, 16), int(end, 16), perms, int(offset, 16), device, int(inode), name.lstrip(" "))


def denied(pid: int) -> Refusal:
    """Return the refusal for a process that we may not look into."""
    return Refusal(Reason.PERMISSION_DENIED, f"the kernel does not let this user look into process {pid}")


def start_time_of(path: Path) -> int:
    """Return field 22 of a stat file: the start time in clock ticks since boot."""
    text = path.read_text(errors="replace")
    return int(text[text.rindex(")") + 2 :].split()[19])
