# SPDX-License-Identifier: GPL-2.0-only
"""Holes: padding between two functions, after an unconditional transfer, that can hold a jump (design 3.2).

Nobody executes it, so its bytes may be changed whatever the threads do. A NOP that a compiler puts before an entry
(`-fpatchable-function-entry=N,M`) is padding as well. Only what lies around a site is looked at.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, Protocol

from iced_x86 import Decoder, FlowControl, Mnemonic

from podgraft_engine.target.layout import PAGE
from podgraft_engine.target.module import Module

# `jmp rel8` reaches this far from its own end.
BACKWARD: Final = 128
FORWARD: Final = 127
# What is longer is no alignment: something without unwind data may lie there.
LONGEST_PADDING: Final = 256
_ENDS: Final = (
    FlowControl.UNCONDITIONAL_BRANCH,
    FlowControl.INDIRECT_BRANCH,
    FlowControl.RETURN,
    FlowControl.EXCEPTION,
)
_FILLERS: Final = (0x00, 0xCC)


class Reader(Protocol):
    """Memory that can be read: a process's, or a file's."""

    def read(self, address: int, size: int) -> bytes:
        """Return exactly size bytes."""


class Holes:
    """The free padding of a module. used: addresses of bytes that may not be changed; what is taken is added."""

    def __init__(self, module: Module, memory: Reader, used: set[int]) -> None:
        self._module = module
        self._memory = memory
        self._used = used
        self._padding: dict[tuple[int, int], bool] = {}

    def near(self, origin: int, size: int) -> Iterator[int]:
        """Yield places for `size` bytes, within one page, that a `jmp rel8` ending at `origin` reaches.

        Of each free piece the lowest and the highest: a chain wants to get far.
        """
        for start, end in self._gaps(origin - BACKWARD, origin + FORWARD):
            for piece_start, piece_end in self._free(start, end):
                low = max(piece_start, origin - BACKWARD)
                high = min(piece_end - size, origin + FORWARD)
                if low <= high:
                    yield low
                if low < high:
                    yield high

    def behind(self, end: int) -> int:
        """Return how many free bytes of padding follow the end of a function, within its last byte's page."""
        for start, following in self._gaps(end, end):
            if start == end and end % PAGE:
                return next((stop - end for begin, stop in self._free(start, following) if begin == end), 0)
        return 0

    def take(self, start: int, size: int) -> None:
        """Mark bytes as used."""
        self._used.update(range(start, start + size))

    def is_free(self, start: int, size: int) -> bool:
        """Tell whether nobody uses these bytes."""
        return self._used.isdisjoint(range(start, start + size))

    def _gaps(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield the padding that begins at or before high and ends after low."""
        frames, bias = self._module.eh_frame, self._module.bias
        if frames is None:
            return
        ranges = frames.ranges_between(low - bias + 1, high - bias + LONGEST_PADDING)
        for entry, following in pairwise(ranges):
            start, end = bias + entry[1], bias + following[0]
            if start <= high and start < end <= start + LONGEST_PADDING and self._is_padding(entry, end):
                yield start, end

    def _free(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the unused pieces of some padding, none of which crosses a page."""
        begin = start
        for address in range(start, end + 1):
            used = address in self._used
            if used or address % PAGE == 0 or address == end:
                if begin < address:
                    yield begin, address
                begin = address + used

    def _is_padding(self, entry: tuple[int, int], end: int) -> bool:
        """Tell whether padding follows this code, up to `end`, that execution cannot fall into."""
        start = self._module.bias + entry[1]
        known = self._padding.get((start, end))
        if known is None:
            mapped = self._module.contains(start) and self._module.contains(end - 1)
            known = mapped and is_padding(self._memory.read(start, end - start)) and self._ends_for_good(*entry)
            self._padding[start, end] = known
        return known

    def _ends_for_good(self, start: int, end: int) -> bool:
        code = self._memory.read(self._module.bias + start, end - start)
        last = None
        for last in Decoder(64, code, ip=start):  # noqa: B007 (the last one is wanted)
            pass
        if last is None or last.next_ip != end:
            return False
        return last.flow_control in _ENDS or last.mnemonic in (Mnemonic.HLT, Mnemonic.UD2)


def is_padding(data: bytes) -> bool:
    """Tell whether bytes are nothing but NOPs, int3 and zeros."""
    position = 0
    while position < len(data):
        if data[position] in _FILLERS:
            position += 1
            continue
        instruction = Decoder(64, data[position:], ip=0).decode()
        if instruction.mnemonic != Mnemonic.NOP:
            return False
        position += instruction.len
    return True
