# SPDX-License-Identifier: GPL-2.0-only
"""Would the target's seccomp filters let the carrier and the helper do their work? The filters are read and simulated.

The helper inherits the filters of its carrier, and a filter may kill: so every call is tried out here first
(seccomp(2), Documentation/userspace-api/seccomp_filter.rst, net/core/filter.c for the classic BPF machine).
"""

import ctypes
import errno
import struct
from collections.abc import Callable
from typing import Final

from ptrace import PtraceError
from ptrace.binding.func import ptrace

from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.target.tracer import Held

PTRACE_SECCOMP_GET_FILTER: Final = 0x420C
AUDIT_ARCH_X86_64: Final = 0xC000003E
RET_ALLOW: Final = 0x7FFF0000
RET_LOG: Final = 0x7FFC0000
MAX_INSTRUCTIONS: Final = 4096
_ACTION: Final = 0xFFFF0000
_INSTRUCTION: Final = struct.Struct("<HBBI")
_U32: Final = 0xFFFFFFFF

Program = list[tuple[int, int, int, int]]

# What carrier, helper and wake-up points call (asm/block.S, rpc.py, wake.S): name, number, arguments.
CALLS: Final[tuple[tuple[str, int, tuple[int, ...]], ...]] = (
    ("rt_sigprocmask", 14, (2, 0, 0, 8)),
    ("clone", 56, (0x3D0F00,)),
    ("ppoll", 271, (0, 0, 0, 0, 8)),
    ("restart_syscall", 219, ()),
    ("gettid", 186, ()),
    ("getpid", 39, ()),
    ("futex", 202, (0, 0)),
    ("futex", 202, (0, 1, 1)),
    ("madvise", 28, (0, 4096, 4)),
    ("madvise", 28, (0, 4096, 10)),
    ("madvise", 28, (0, 4096, 22)),
    ("mmap", 9, (0, 4096, 3, 0x100021, 2**64 - 1)),
    ("mmap", 9, (0, 4096, 0, 0x100022, 2**64 - 1)),
    ("mmap", 9, (0, 4096, 5, 0x100022, 2**64 - 1)),
    ("mprotect", 10, (0, 4096, 3)),
    ("mprotect", 10, (0, 4096, 5)),
    ("mremap", 25, (0, 4096, 4096, 7)),
    ("mremap", 25, (0, 4096, 4096, 3)),
    ("munmap", 11, (0, 4096)),
    ("exit", 60, (0,)),
)


def read_filters(held: Held) -> list[Program]:
    """Return the filter programs of a held thread, newest first.

    Raises:
        Refusal: SECCOMP_FORBIDS when they cannot be read (that takes CAP_SYS_ADMIN and no filter on ourselves).
    """
    programs: list[Program] = []
    buffer = ctypes.create_string_buffer(MAX_INSTRUCTIONS * _INSTRUCTION.size)
    while True:
        try:
            count = ptrace(PTRACE_SECCOMP_GET_FILTER, held.tid, len(programs), ctypes.addressof(buffer))
        except PtraceError as error:
            if error.errno == errno.ENOENT:
                return programs
            raise Refusal(
                Reason.SECCOMP_FORBIDS,
                f"the seccomp filter of thread {held.tid} cannot be read",
                "let it be read: CAP_SYS_ADMIN and no filter for the engine itself (chart: agent.readSeccompFilters)",
            ) from None
        programs.append(list(_INSTRUCTION.iter_unpack(buffer.raw[: int(count) * _INSTRUCTION.size])))


def forbidden_calls(programs: list[Program], address: int) -> list[str]:
    """Return the names of our calls that a filter would not let pass; address is where they come from."""
    names = []
    for name, number, args in CALLS:
        words = [*args, *[0] * (6 - len(args))]
        data = struct.pack("<iIQ6Q", number, AUDIT_ARCH_X86_64, address, *words)
        if any(run(program, data) & _ACTION not in (RET_ALLOW, RET_LOG) for program in programs):
            names.append(name)
    return sorted(set(names))


def run(program: Program, data: bytes) -> int:
    """Execute one classic BPF program on a struct seccomp_data; an instruction that is not known counts as kill (0)."""
    a = x = pc = 0
    memory = [0] * 16
    while pc < len(program):
        code, jump_true, jump_false, k = program[pc]
        pc += 1
        kind = code & 7
        if kind in (0, 1):  # BPF_LD, BPF_LDX
            value = _load(code, k, data, memory)
            a, x = (value, x) if kind == 0 else (a, value)
        elif kind in (2, 3):  # BPF_ST, BPF_STX
            memory[k & 15] = a if kind == 2 else x
        elif kind == 4:  # BPF_ALU
            a = _ALU.get(code & 0xF0, _zero)(a, x if code & 8 else k) & _U32
        elif kind == 5:  # BPF_JMP
            pc += k if code & 0xF0 == 0 else _target(code, a, x if code & 8 else k, jump_true, jump_false)
        elif kind == 6:  # BPF_RET
            return a if code & 0x18 == 0x10 else k
        elif code & 0xF8 == 0:  # BPF_MISC: TAX
            x = a
        else:  # TXA
            a = x
    return 0


def _load(code: int, k: int, data: bytes, memory: list[int]) -> int:
    mode = code & 0xE0
    if mode == 0x20:  # BPF_ABS
        return int.from_bytes(data[k : k + 4], "little")
    if mode == 0x60:  # BPF_MEM
        return memory[k & 15]
    return len(data) if mode == 0x80 else k  # BPF_LEN, BPF_IMM


def _target(code: int, a: int, operand: int, jump_true: int, jump_false: int) -> int:
    met = {0x10: a == operand, 0x20: a > operand, 0x30: a >= operand, 0x40: bool(a & operand)}.get(code & 0xF0, False)
    return jump_true if met else jump_false


def _zero(_a: int, _b: int) -> int:
    return 0


_ALU: Final[dict[int, Callable[[int, int], int]]] = {
    0x00: lambda a, b: a + b,
    0x10: lambda a, b: a - b,
    0x20: lambda a, b: a * b,
    0x30: lambda a, b: a // b if b else 0,
    0x40: lambda a, b: a | b,
    0x50: lambda a, b: a & b,
    0x60: lambda a, b: a << b if b < 32 else 0,
    0x70: lambda a, b: a >> b if b < 32 else 0,
    0x80: lambda a, _b: -a,
    0x90: lambda a, b: a % b if b else 0,
    0xA0: lambda a, b: a ^ b,
}
