# SPDX-License-Identifier: GPL-2.0-only
"""Punned jumps: a `jmp rel32` of which only the first bytes are ours, the others are the program's.

The idea is E9Patch's (PLDI 2020). The program's bytes are the high ones of the distance, so they decide roughly where
the jump leads; a trampoline must be put there. Prefixes that mean nothing move the jump, and other bytes decide (its
tactics B2 and T1).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

NEAR_JUMP: Final = 5
# Two prefixes, opcode and one byte of the distance are ours, three the program's.
LONGEST_PUN: Final = 7
# A CS prefix means nothing before a jump; GCC pads jumps with it (-mindirect-branch-cs-prefix).
_PREFIX: Final = b"\x2e"


@dataclass(frozen=True)
class Pun:
    """Where a punned jump can lead: all addresses in [low, high]; prefixes: how many bytes stand before it."""

    low: int
    high: int
    prefixes: int = 0

    @property
    def size(self) -> int:
        """Return the length of the whole jump, the program's bytes included."""
        return self.prefixes + NEAR_JUMP


def puns(address: int, code: bytes, length: int) -> Iterator[Pun]:
    """Yield the jumps that can be made by a choice of the first `length` (at most 4) of the bytes at an address."""
    for prefixes in range(length - 1):
        kept = code[length : prefixes + NEAR_JUMP]
        free = length - 1 - prefixes
        if free + len(kept) == 4:
            low = address + prefixes + NEAR_JUMP + int.from_bytes(bytes(free) + kept, "little", signed=True)
            yield Pun(low, low + (1 << 8 * free) - 1, prefixes)


def punned_jump(address: int, length: int, pun: Pun, target: int) -> bytes:
    """Encode the bytes that are ours."""
    distance = struct.pack("<i", target - address - pun.size)
    return (_PREFIX * pun.prefixes + b"\xe9" + distance)[:length]
