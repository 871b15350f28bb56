# SPDX-License-Identifier: GPL-2.0-only
"""Holes: padding between two functions, after an unconditional transfer, that can hold a long jump (design 3.2)."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from iced_x86 import Decoder, FlowControl, Mnemonic

from podgraft_engine.code.sites import NEAR_JUMP
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.module import Module

_ENDS: Final = (
    FlowControl.UNCONDITIONAL_BRANCH,
    FlowControl.INDIRECT_BRANCH,
    FlowControl.RETURN,
    FlowControl.EXCEPTION,
)
_FILLERS: Final = (0x00, 0xCC)


class Holes:
    """The free holes of a module; each is handed out once."""

    def __init__(self, module: Module, memory: Memory, used: set[int]) -> None:
        self._module = module
        self._memory = memory
        self._used = used

    def near(self, origin: int, size: int) -> Iterator[int]:
        """Yield holes of at least `size` bytes that a `jmp rel8` ending at `origin` reaches."""
        frames = self._module.eh_frame
        if frames is None:
            return
        bias = self._module.bias
        ranges = frames.ranges_between(origin - bias - 0x1000, origin - bias + 0x200)
        for (start, end), (following, _) in pairwise(ranges):
            hole = bias + end
            reachable = -128 <= hole - origin <= 127
            if (
                reachable
                and following - end >= size
                and hole not in self._used
                and self._is_free(start, end, following)
            ):
                yield hole

    def take(self, hole: int) -> None:
        """Mark a hole as used."""
        self._used.add(hole)

    def _is_free(self, start: int, end: int, following: int) -> bool:
        bias = self._module.bias
        if not self._module.contains(bias + end) or not self._module.contains(bias + end + NEAR_JUMP):
            return False
        return is_padding(self._memory.read(bias + end, following - end)) and self._ends_for_good(start, end)

    def _ends_for_good(self, start: int, end: int) -> bool:
        """Tell whether execution cannot fall out of the function into the padding."""
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
