# SPDX-License-Identifier: GPL-2.0-only
"""Where stacks go on that no thread is on: what a ucontext_t, a jump buffer or a switch by hand has saved of them."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from podgraft_engine.code.switching import Switching
from podgraft_engine.target.ehframe import RBP, RSP
from podgraft_engine.target.layout import PAGE
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Mapping, Process
from podgraft_engine.threads.stack import Frame

SLOT: Final = 8
# A switch by hand saves some registers below the address that it returns to.
_SAVED: Final = 64
_SIZES_OF_CALLS: Final = (2, 3, 4, 6, 7)  # call r/m64 (Intel SDM, CALL)
_CALL_NEAR: Final = 0xE8
_JUMP_BY_SLOT: Final = b"\xff\x25"
_ENDBR64: Final = b"\xf3\x0f\x1e\xfa"
_BND: Final = b"\xf2"
# glibc, sysdeps/unix/sysv/linux/x86/sys/ucontext.h: offsets from the stack pointer's place; registers by DWARF number
_UC_PC: Final = 8
_UC_FPREGS: Final = 64
_UC_FPREGS_MEM: Final = 264
_UC_SAVED: Final = {3: -32, 6: -40, 12: -88, 13: -80, 14: -72, 15: -64}
# glibc, sysdeps/x86_64/jmpbuf-offsets.h, likewise; pc, rbp and the stack pointer are mangled
_JB_PC: Final = 8
_JB_RBP: Final = -40
_JB_SAVED: Final = {3: -48, 12: -32, 13: -24, 14: -16, 15: -8}
# glibc, sysdeps/x86_64/nptl/tls.h, tcbhead_t
_TCB_ALIGNMENT: Final = 64
_TCB_SELF: Final = 16
_TCB_GUARD: Final = 48
_TCB_ROOM: Final = 2048  # a thread's list of robust mutexes begins at most so far behind its control block
_WORD: Final = 2**64 - 1
_ROTATED: Final = 17


@dataclass(frozen=True)
class _OwnStack:
    """The stack that a thread was born with; sp: where it sleeps on it, None where it runs or is elsewhere."""

    start: int
    end: int
    sp: int | None


class SavedStacks:
    """Tells of words in the memory of a process whether a stack goes on there. The program runs on meanwhile."""

    def __init__(self, process: Process, memory: Memory, switching: Switching) -> None:
        self._process = process
        self._memory = memory
        self._switching = switching
        self._maps = process.maps()
        self._own = list(self._stacks_of_threads())
        self._guard = self._pointer_guard()

    def called_from(self, at: int) -> bool:
        """Tell whether an address that is stored here is where a ucontext_t goes on."""
        pointer = self._word(at - _UC_PC)
        return pointer is not None and self._is_context(at - _UC_PC) and not self.is_left(pointer)

    def plain(self, at: int, pointer: int) -> Frame | None:
        """Return where a stack goes on if its pointer is what is stored here; None if it is some other word."""
        if self._is_context(at):
            pc = self._word(at + _UC_PC) or 0
            return Frame(pc, {**self._registers(at, _UC_SAVED), RSP: pointer})
        saved = (self.read(pointer, _SAVED * SLOT) or b"") if self._switching.by_hand else b""
        for index, (value,) in enumerate(struct.iter_unpack("<Q", saved)):
            if self._follows_a_switch(value):
                return Frame(value, {RSP: pointer + (index + 1) * SLOT})
        return None

    def jump(self, at: int, pointer: int) -> Frame | None:
        """Return where a jump buffer goes on whose stack pointer, mangled, is stored here; None if it is none."""
        pc, frame_pointer = (self._demangle(self._word(at + offset) or 0) for offset in (_JB_PC, _JB_RBP))
        registers = {**self._registers(at, _JB_SAVED), RBP: frame_pointer, RSP: pointer}
        return Frame(pc, registers) if self.follows_a_call(pc) else None

    def jumps_in(self, data: bytes, near: set[int]) -> Iterator[tuple[int, int]]:
        """Yield every word that may be a mangled stack pointer near some addresses: where it is, and what it means."""
        for pattern in {self._pattern(address) for address in near if self._guard is not None}:
            for match in re.finditer(pattern, data, re.DOTALL):
                if match.start() % SLOT == 0:
                    yield match.start(), self._demangle(struct.unpack_from("<Q", data, match.start())[0])

    def is_left(self, pointer: int) -> bool:
        """Tell whether a stack pointer is where a thread left its own stack for another, and has come back since.

        If it has not, it is on that other stack, and is not moved before it is on its own.
        """
        own = next((one for one in self._own if one.start <= pointer < one.end), None)
        return own is not None and (own.sp is None or pointer < own.sp)

    def follows_a_call(self, address: int) -> bool:
        """Tell whether an address may be one that a call returns to."""
        before = self._before(address)
        return before[-5] == _CALL_NEAR or _is_indirect(before)

    def _follows_a_switch(self, address: int) -> bool:
        """Tell whether an address may be one that a switch by hand returns to: what calls call is known for most."""
        before = self._before(address)
        function = address + int.from_bytes(before[-4:], "little", signed=True)
        near = before[-5] == _CALL_NEAR and self._switching.is_switch(self._behind_slot(function))
        return near or _is_indirect(before)

    def _behind_slot(self, function: int) -> int:
        """Return where an entry of a procedure linkage table leads (psABI 5.2), anything else as it is."""
        code = self.read(function, 11) or b""
        jump = code.removeprefix(_ENDBR64).removeprefix(_BND)
        if not jump.startswith(_JUMP_BY_SLOT):
            return function
        behind = function + len(code) - len(jump) + 6
        return self._word(behind + int.from_bytes(jump[2:6], "little", signed=True)) or function

    def _before(self, address: int) -> bytes:
        """Return the bytes before an address in code, zeros if it is none."""
        mapping = self._mapping(address)
        return (self.read(address - 7, 7) if mapping is not None and "x" in mapping.perms else None) or bytes(7)

    def read(self, address: int, size: int) -> bytes | None:
        """Read memory that may be unmapped at any moment."""
        return self._memory.try_read(address, size) if size > 0 and address > PAGE else None

    def _is_context(self, at: int) -> bool:
        """Tell whether this is the stack pointer's place in a ucontext_t: it has a pointer into itself."""
        return self._word(at + _UC_FPREGS) == at + _UC_FPREGS_MEM

    def _registers(self, at: int, offsets: dict[int, int]) -> dict[int, int]:
        return {register: self._word(at + offset) or 0 for register, offset in offsets.items()}

    def _word(self, address: int) -> int | None:
        data = self.read(address, SLOT)
        return int.from_bytes(data, "little") if data is not None else None

    def _mapping(self, address: int) -> Mapping | None:
        return next((m for m in self._maps if m.start <= address < m.end), None)

    def _stacks_of_threads(self) -> Iterator[_OwnStack]:
        """Yield the stacks that threads were born with, as far as they can be known.

        glibc keeps the control block of a thread at the top of its stack; that of the main thread is elsewhere.
        """
        for tid in self._process.threads():
            block = self._process.control_block(tid)
            mapping = self._mapping(block) if block is not None else None
            start, end = (mapping.start, block) if mapping and block else (0, 0)
            if tid == self._process.pid:
                start, end = next(((m.start, m.end) for m in self._maps if m.path == "[stack]"), (0, 0))
            sleep = self._process.sleeping_in(tid)
            yield _OwnStack(start, end, sleep.sp if sleep is not None and start <= sleep.sp < end else None)

    def _pointer_guard(self) -> int | None:
        """Return what glibc mangles pointers with: it is in the control block of each thread."""
        for block in filter(None, map(self._process.control_block, self._process.threads())):
            for at in range(block // _TCB_ALIGNMENT * _TCB_ALIGNMENT, block - _TCB_ROOM, -_TCB_ALIGNMENT):
                if self._word(at) == at == self._word(at + _TCB_SELF):
                    return self._word(at + _TCB_GUARD)
        return None

    def _pattern(self, pointer: int) -> bytes:
        """Return what stack pointers near this one look like in a jump buffer (glibc, PTR_MANGLE)."""
        mixed = pointer ^ (self._guard or 0)
        word = ((mixed << _ROTATED | mixed >> 64 - _ROTATED) & _WORD).to_bytes(SLOT, "little")
        return re.escape(word[:2]) + b"(?=.{4}" + re.escape(word[6:]) + b")"

    def _demangle(self, value: int) -> int:
        return ((value >> _ROTATED | value << 64 - _ROTATED) & _WORD) ^ (self._guard or 0)


def _is_indirect(before: bytes) -> bool:
    """Tell whether some bytes end with `call r/m64`: opcode FF, the register field of ModRM is 2."""
    return any(before[-size] == 0xFF and before[1 - size] & 0x38 == 0x10 for size in _SIZES_OF_CALLS)
