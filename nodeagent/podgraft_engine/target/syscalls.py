# SPDX-License-Identifier: GPL-2.0-only
"""Which system calls may be interrupted, and how each goes on (measured on 6.18; arch/x86/kernel/signal.c)."""

from typing import Final

MMAP: Final = 9
MPROTECT: Final = 10
MUNMAP: Final = 11
MADVISE: Final = 28
MREMAP: Final = 25
FUTEX: Final = 202
RESTART_SYSCALL: Final = 219

ERESTARTSYS: Final = -512
ERESTARTNOINTR: Final = -513
ERESTARTNOHAND: Final = -514
ERESTART_RESTARTBLOCK: Final = -516
EINTR: Final = -4

# Calls that return EINTR to the program when a debugger looks at them: rewound by us at every look.
EINTR_CLASS: Final = {
    232: "epoll_wait",
    281: "epoll_pwait",
    441: "epoll_pwait2",
    208: "io_getevents",
    333: "io_pgetevents",
    65: "semop",
    220: "semtimedop",
    128: "rt_sigtimedwait",
}
# The same class only where the socket has SO_RCVTIMEO or SO_SNDTIMEO: rewound if they answer EINTR.
EINTR_WITH_TIMEOUT: Final = {43: "accept", 288: "accept4", 45: "recvfrom", 47: "recvmsg", 299: "recvmmsg"}
# Calls that may have done a part of their work: an interruption would make them return short.
PARTIAL_PROGRESS: Final = {
    1: "write",
    18: "pwrite64",
    20: "writev",
    296: "pwritev",
    328: "pwritev2",
    40: "sendfile",
    44: "sendto",
    46: "sendmsg",
    307: "sendmmsg",
    275: "splice",
    276: "tee",
    278: "vmsplice",
    326: "copy_file_range",
}
MSG_WAITALL: Final = 0x100

# Preferred first: the kernel restarts these by itself, without a trace.
RESTARTS_AS_IS: Final = {
    0: "read",
    7: "poll",
    17: "pread64",
    19: "readv",
    23: "select",
    34: "pause",
    35: "nanosleep",
    42: "connect",
    61: "wait4",
    69: "msgsnd",
    70: "msgrcv",
    72: "fcntl",
    73: "flock",
    130: "rt_sigsuspend",
    202: "futex",
    219: "restart_syscall",  # what poll, nanosleep and timed futexes have become after somebody looked at them
    230: "clock_nanosleep",
    247: "waitid",
    270: "pselect6",
    271: "ppoll",
    449: "futex_waitv",
    **EINTR_WITH_TIMEOUT,
}
# Relative timeouts go through the restart block: still exact, but a second choice for a carrier.
RESTART_BLOCK: Final = {35, 230, 7, RESTART_SYSCALL}
NO_HANDLER_RESTART: Final = {23, 34, 130, 270, 271, 70}


def name_of(number: int) -> str:
    """Return the name of a system call for humans, its number where the name is not in our tables."""
    if number == -1:
        return "page fault or scheduler"
    for table in (EINTR_CLASS, PARTIAL_PROGRESS, RESTARTS_AS_IS):
        if number in table:
            return table[number]
    return f"system call {number}"


def time_limit(number: int, args: tuple[int, ...]) -> float | None:
    """Return the seconds after which an EINTR-class call ends by itself; None when it has no limit, or is not of it.

    Only epoll tells it in its arguments; for the others with a time limit the time is not known, and a minute is
    taken for it.
    """
    if number in (232, 281):  # epoll_wait, epoll_pwait: milliseconds
        limit = args[3] & 0xFFFFFFFF
        return None if limit >> 31 else limit / 1000
    timeout_at = {441: 3, 208: 4, 333: 4, 220: 3, 128: 2}.get(number)
    return 60.0 if timeout_at is not None and args[timeout_at] else None


def can_be_interrupted(number: int) -> bool:
    """Tell whether it is known how the call goes on after an attachment."""
    return number in RESTARTS_AS_IS or number in EINTR_CLASS


def partial_progress(number: int, args: tuple[int, ...]) -> bool:
    """Tell whether an interruption could make the call return short: no rewind can repair that."""
    waits_for_all = number in (45, 47) and len(args) > 3 and bool(args[3 if number == 45 else 2] & MSG_WAITALL)
    return number in PARTIAL_PROGRESS or waits_for_all


def rewind(rax: int, orig_rax: int) -> int | None:
    """Return the call number to repeat when an attachment ended the call with EINTR, else None.

    Only for the EINTR class; every other restart is done by the kernel when the thread is let go.
    """
    if rax == EINTR and (orig_rax in EINTR_CLASS or orig_rax in EINTR_WITH_TIMEOUT):
        return orig_rax
    return None
