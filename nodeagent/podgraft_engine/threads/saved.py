# SPDX-License-Identifier: GPL-2.0-only
"""Where stacks go on that no thread is on: what a ucontext_t, a jump buffer or a switch by hand has saved of them."""

import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
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
_REGISTERS: Final = 9
_LARGEST_FRAME: Final = 2**16
_RED_ZONE: Final = 128  # psABI 3.2.2
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
        maps = process.maps()
        self._code = [m for m in maps if "x" in m.perms]
        self._returns: dict[int, bool] = {}
        self._own = list(self._stacks_of_threads(maps))
        self._guard = self._pointer_guard()

    def called_from(self, at: int) -> bool:
        """Tell whether an address that is stored here is where a ucontext_t goes on."""
        pointer = self._word(at - _UC_PC)
        return pointer is not None and self._is_context(at - _UC_PC) and not self.is_left(pointer)

    def plain(self, at: int, pointer: int) -> list[Frame]:
        """Return where a stack may go on if its pointer is what is stored here; nothing if it is some other word.

        A switch by hand leaves the address that it returns to above the registers that it saves, or right below the
        stack pointer if it has taken that itself. It may have been entered by a jump from another function.
        """
        if self._is_context(at):
            pc = self._word(at + _UC_PC) or 0
            return [Frame(pc, {**self._registers(at, _UC_SAVED), RSP: pointer})]
        saved = self.read_some(pointer - SLOT, (_SAVED + 1) * SLOT) if self._switching.by_hand else b""
        words = [word for (word,) in struct.iter_unpack("<Q", saved[: len(saved) // SLOT * SLOT])]
        for index, word in enumerate(words):
            if self.follows_a_call(word) if index <= _REGISTERS else self._follows_a_switch(word):
                above = pointer + index * SLOT
                return [Frame(word, {RSP: above, **more}) for more in self._frame_pointers(words[1:index], pointer)]
        return []

    @staticmethod
    def _frame_pointers(saved: list[int], pointer: int) -> list[dict[int, int]]:
        """Return which of the saved registers may be the frame pointer: those that point up the stack, not too far."""
        near = {word for word in saved if pointer < word < pointer + _LARGEST_FRAME and word % SLOT == 0}
        return [{RBP: word} for word in sorted(near)] or [{}]

    def jump(self, at: int, pointer: int) -> list[Frame]:
        """Return where a jump buffer goes on whose stack pointer, mangled, is stored here; nothing if it is none."""
        pc, frame_pointer = (self._demangle(self._word(at + offset) or 0) for offset in (_JB_PC, _JB_RBP))
        registers = {**self._registers(at, _JB_SAVED), RBP: frame_pointer, RSP: pointer}
        return [Frame(pc, registers)] if self.follows_a_call(pc) else []

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
        own = self._owner(pointer)
        return own is not None and (own.sp is None or pointer < own.sp)

    def is_dead(self, at: int) -> bool:
        """Tell whether a word lies below the stack pointer of a thread that sleeps on its own stack."""
        own = self._owner(at)
        return own is not None and own.sp is not None and at < own.sp - _RED_ZONE

    def is_owned(self, pointer: int) -> bool:
        """Tell whether a stack pointer lies in the stack that some thread was born with."""
        return self._owner(pointer) is not None

    def _owner(self, pointer: int) -> _OwnStack | None:
        return next((one for one in self._own if one.start <= pointer < one.end), None)

    def follows_a_call(self, address: int) -> bool:
        """Tell whether an address may be one that a call returns to."""
        if not self._is_code(address):
            return False
        if address not in self._returns:
            before = self._before(address)
            self._returns[address] = before[-5] == _CALL_NEAR or _is_indirect(before)
        return self._returns[address]

    def _follows_a_switch(self, address: int) -> bool:
        """Tell whether an address may be one that a switch by hand returns to: what calls call is known for most."""
        if not self.follows_a_call(address):
            return False
        before = self._before(address)
        function = address + int.from_bytes(before[-4:], "little", signed=True)
        near = before[-5] == _CALL_NEAR and self._switching.is_switch(self._behind_slot(function))
        return near or _is_indirect(before)

    def _behind_slot(self, function: int) -> int:
        """Return where an entry of a procedure linkage table leads (psABI 5.2), anything else as it is."""
        code = self.read_some(function, 11)
        jump = code.removeprefix(_ENDBR64).removeprefix(_BND)
        if not jump.startswith(_JUMP_BY_SLOT):
            return function
        behind = function + len(code) - len(jump) + 6
        return self._word(behind + int.from_bytes(jump[2:6], "little", signed=True)) or function

    def _before(self, address: int) -> bytes:
        """Return the bytes before an address, zeros where none can be read."""
        return self._read(address - 7, 7) or bytes(7)

    def read_some(self, address: int, size: int) -> bytes:
        """Read memory that may be unmapped at any moment, as far as it goes."""
        return self._memory.read_some(address, size) if size > 0 and address > PAGE else b""

    def _read(self, address: int, size: int) -> bytes | None:
        data = self.read_some(address, size)
        return data if len(data) == size else None

    def _is_context(self, at: int) -> bool:
        """Tell whether this is the stack pointer's place in a ucontext_t: it has a pointer into itself."""
        return self._word(at + _UC_FPREGS) == at + _UC_FPREGS_MEM

    def _registers(self, at: int, offsets: dict[int, int]) -> dict[int, int]:
        return {register: self._word(at + offset) or 0 for register, offset in offsets.items()}

    def _word(self, address: int) -> int | None:
        data = self._read(address, SLOT)
        return int.from_bytes(data, "little") if data is not None else None

    def _is_code(self, address: int) -> bool:
        index = bisect_right(self._code, address, key=lambda mapping: mapping.start) - 1
        return index >= 0 and address < self._code[index].end

    def _stacks_of_threads(self, maps: list[Mapping]) -> Iterator[_OwnStack]:
        """Yield the stacks that threads were born with, as far as they can be known."""
        for tid in self._process.threads():
            block = self._process.control_block(tid)
            start, end = (self._block_start(block), block) if block is not None else (0, 0)
            if tid == self._process.pid:
                start, end = next(((m.start, m.end) for m in maps if m.path == "[stack]"), (0, 0))
            sleep = self._process.sleeping_in(tid)
            yield _OwnStack(start or end, end, sleep.sp if sleep is not None and start <= sleep.sp < end else None)

    def _block_start(self, block: int) -> int:
        """Return where the stack begins that has the control block at its top, 0 if that cannot be known.

        Around the list of robust mutexes glibc has the stack's start and size (nptl/descr.h, struct pthread); where in
        it depends on the version.
        """
        around = self.read_some(block - _TCB_ROOM, 2 * _TCB_ROOM)
        words: list[int] = [word for (word,) in struct.iter_unpack("<Q", around[: len(around) // SLOT * SLOT])]
        for start, size in pairwise(words):
            if start and size and not (start | size) % PAGE and start < block < start + size:
                return start
        return 0

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
