# SPDX-License-Identifier: GPL-2.0-only
"""Is a thread quiescent? A conservative scan of its live stack, and where that says no, an exact unwind (design 5).

The scan looks for words in (start, end] of forbidden code: a return address is never the start of a function, and a
noreturn call at the end returns to `end`; function pointers (= start) are no frames.
"""

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from podgraft_engine.patched.state import CodeRange
from podgraft_engine.target.ehframe import RETURN_ADDRESS, RSP, Row
from podgraft_engine.target.search import words_with

MAX_FRAMES: Final = 256
RowLookup = Callable[[int], Row | None]


@dataclass(frozen=True)
class Verdict:
    """quiescent, or why not: the function on the stack and the address in it where the thread will come back to.

    doubtful: a word on the stack spoke against it and the unwind could not tell whether it is a frame.
    """

    quiescent: bool
    why: str = ""
    function: str | None = None
    call_site: int | None = None
    doubtful: bool = False


@dataclass(frozen=True)
class Frame:
    """The registers that unwinding starts from; DWARF numbers."""

    pc: int
    registers: dict[int, int]


QUIESCENT: Final = Verdict(quiescent=True)


class Forbidden:
    """Code that must not be on a thread's stack when it migrates."""

    def __init__(self, ranges: list[CodeRange]) -> None:
        self._ranges = sorted(ranges, key=lambda r: r.start)
        self._starts = [r.start for r in self._ranges]
        self._windows = _windows(self._ranges)

    def at_pc(self, pc: int) -> CodeRange | None:
        """Return the range that a thread at this pc is executing."""
        found = self._find(pc)
        return found if found is not None and pc < found.end else None

    def as_return(self, address: int) -> CodeRange | None:
        """Return the range that a return to this address would enter."""
        index = bisect_right(self._starts, address - 1) - 1
        found = self._ranges[index] if index >= 0 else None
        return found if found is not None and found.start < address <= found.end else None

    def scan(self, stack: bytes | bytearray, size: int) -> tuple[int, CodeRange] | None:
        """Return the first word (value and range) on the stack that points into forbidden code.

        The bytes that all addresses of a window share are searched for by the C library, so that a held thread waits
        about a microsecond per 10 KiB.
        """
        return next(((value, found) for _, value, found in self.hits(stack, size)), None)

    def hits(self, memory: bytes | bytearray, size: int) -> Iterator[tuple[int, int, CodeRange]]:
        """Yield every word that points into forbidden code: where it is, its value, and the range."""
        for high in self._windows:
            for at, value in words_with(high, memory, size):
                found = self.as_return(value)
                if found is not None:
                    yield at, value, found

    def _find(self, address: int) -> CodeRange | None:
        index = bisect_right(self._starts, address) - 1
        return self._ranges[index] if index >= 0 else None


def unwind(frame: Frame, stack: bytes | bytearray, base: int, size: int, rows: RowLookup) -> list[int] | None:
    """Return the pcs of all frames, innermost first, or None when the stack cannot be unwound to its end.

    Args:
        frame: where to start.
        stack: bytes of the stack from address `base`; `size` of them are valid.
        base: the stack pointer.
        size: valid bytes.
        rows: gives the unwind row for a pc, None when it is not known (yet).
    """
    pcs, whole = _unwound(frame, stack, base, size, rows)
    return pcs if whole else None


def callers(frame: Frame, stack: bytes | bytearray, base: int, size: int, rows: RowLookup) -> Iterator[Frame | None]:
    """Yield the frame of each caller, innermost first; last None where the stack cannot be unwound to its end.

    The return address of a frame lies right below its stack pointer. The registers are those of the last one that was
    asked for. Arguments as for `unwind`.
    """
    registers = dict(frame.registers)
    lookup = frame.pc
    for _ in range(MAX_FRAMES):
        row = rows(lookup)
        if row is not None and row.outermost:
            return
        cfa = registers.get(row.cfa_register) if row is not None and row.known else None
        if row is None or cfa is None:
            break
        cfa += row.cfa_offset
        restored: dict[int, int] = {}
        for register, offset in row.saved:
            at = cfa + offset - base
            if not 0 <= at <= size - 8:
                yield None
                return
            restored[register] = struct.unpack_from("<Q", stack, at)[0]
        if RETURN_ADDRESS not in restored or cfa <= registers.get(RSP, 0):
            break
        registers.update(restored)
        registers[RSP] = cfa
        yield Frame(restored[RETURN_ADDRESS], registers)
        lookup = restored[RETURN_ADDRESS] - 1
    yield None


def judge(
    forbidden: Forbidden, frame: Frame, stack: bytes | bytearray, size: int, rows: RowLookup, *, switching: bool = False
) -> Verdict:
    """Say whether a thread with these registers and this stack is quiescent; doubt means no.

    switching: the program switches stacks, so this one must not be found to begin where no thread begins.
    """
    here = forbidden.at_pc(frame.pc)
    if here is not None:
        return _not_yet("it executes the function", here, frame.pc)
    hit = forbidden.scan(stack, size)
    if hit is None and not switching:
        return QUIESCENT
    pcs, whole = _unwound(frame, stack, frame.registers[RSP], size, rows)
    if hit is None:
        foreign = not whole and _is_foreign(pcs[-1], rows)
        return Verdict(quiescent=not foreign, why="it is on a stack that no thread begins on" if foreign else "")
    if not whole:
        why = "its stack may hold a call of the function and cannot be unwound exactly"
        return _not_yet(why, hit[1], hit[0], doubtful=True)
    called = ((forbidden.as_return(pc), pc) for pc in pcs[1:])
    return next((_not_yet("a call of the function is on its stack", f, pc) for f, pc in called if f), QUIESCENT)


def _unwound(frame: Frame, stack: bytes | bytearray, base: int, size: int, rows: RowLookup) -> tuple[list[int], bool]:
    """Return the pcs that an unwind comes by, and whether it comes to the end."""
    pcs = [frame.pc]
    for caller in callers(frame, stack, base, size, rows):
        if caller is None:
            return pcs, False
        pcs.append(caller.pc)
    return pcs, True


def _is_foreign(pc: int, rows: RowLookup) -> bool:
    """Tell whether an unwind ended because no call has put this address there: none, or the start of a function.

    makecontext and its like do so; where unwind information is missing, the address is in the middle of something.
    """
    here, before = rows(pc), rows(pc - 1)
    return pc == 0 or (here is not None and here.known and before is not None and not before.known)


def _not_yet(why: str, where: CodeRange, pc: int, *, doubtful: bool = False) -> Verdict:
    return Verdict(quiescent=False, why=why, function=where.function, call_site=pc, doubtful=doubtful)


def _windows(ranges: list[CodeRange]) -> list[bytes]:
    """Group ranges by the high bytes that their addresses share, as they lie in memory."""
    needles: set[bytes] = set()
    for item in ranges:
        width = 2
        while item.start >> 8 * width != item.end >> 8 * width:
            width += 1
        needles.add((item.start >> 8 * width).to_bytes(8 - width, "little"))
    return sorted(needles)
