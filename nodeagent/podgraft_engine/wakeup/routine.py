# SPDX-License-Identifier: GPL-2.0-only
"""The routine of a wake-up point and the data it reads, as asm/wake.S lays them out."""

import struct
from dataclasses import dataclass
from importlib import resources
from typing import Final

from iced_x86 import Instruction

from podgraft_bundle.errors import PodgraftError, Reason
from podgraft_engine.code.stubs import displaced_code, near_jump
from podgraft_engine.patched.state import CodeRange
from podgraft_engine.target.layout import PAGE

CODE: Final = resources.files("podgraft_engine.wakeup").joinpath("asm/wake.bin").read_bytes()
BACK: Final = 0x2A
SLOW: Final = 0x4A
CHECK: Final = 0x1D8
DATA: Final = 0x1E0
CELL: Final = 512

DESCRIPTOR_AT: Final = 0x08
LOG_INDEX_AT: Final = 0x10
LOG_AT: Final = 0x1000
# What is written over before it is read is lost: its thread has then to be held to see that it has migrated.
LOG_ENTRIES: Final = 16384
DESCRIPTORS_AT: Final = LOG_AT + 8 * LOG_ENTRIES
DESCRIPTOR_SIZE: Final = PAGE
DATA_SIZE: Final = DESCRIPTORS_AT + 2 * DESCRIPTOR_SIZE
AT_POINT: Final = 1 << 31

MAX_HANDLER_RETURNS: Final = 2
# Scanned at every wake-up while forbidden code is on the stack: some 25 us at most. Deeper ones are the engine's work.
LONGEST_SCAN: Final = 256 * 1024
# Not canonical, so it is nobody's return address; 0 would be found on every stack.
_NO_ADDRESS: Final = 1 << 63 | 1
_HEAD: Final = struct.Struct("<11Q")
_RANGE: Final = struct.Struct("<2Q")
_MAX_RANGES: Final = (DESCRIPTOR_SIZE - _HEAD.size) // _RANGE.size


def routine(address: int, data: int, displaced: Instruction, back: int, *, check: bool) -> bytes:
    """Encode one routine.

    Args:
        address: where it will lie.
        data: address of the data.
        displaced: the instruction that its jump replaces.
        back: where the program goes on, unless the displaced instruction says otherwise.
        check: whether the thread looks at its stack; not at a declared point.
    """
    code = bytearray(CODE)
    own = displaced_code(address + BACK, displaced)
    own += near_jump(address + BACK + len(own), back)
    if len(own) > SLOW - BACK:
        raise PodgraftError(Reason.INTERNAL, f"the routine for {displaced} has no room for it")
    code[BACK : BACK + len(own)] = own
    struct.pack_into("<2Q", code, CHECK, int(check), data)
    return bytes(code)


@dataclass(frozen=True)
class Window:
    """Addresses from low to high; high is exclusive."""

    low: int
    high: int


def descriptor(
    generation: int, main_stack: Window, forbidden: list[CodeRange], routines: Window, handler_returns: list[int]
) -> bytes:
    """Encode what threads must know for one generation: where to go, and what must not be on their stack."""
    ranges = _merged(forbidden)
    low, high = ranges[0][0], max(end for _, end in ranges)
    returns = (handler_returns + [_NO_ADDRESS] * MAX_HANDLER_RETURNS)[:MAX_HANDLER_RETURNS]
    head = (generation, main_stack.low, main_stack.high & -8, LONGEST_SCAN, low, high - low)
    # Words in (low, high] of the routines: as everywhere, a return address is never the start of a function.
    own = (routines.low + 1, routines.high - routines.low - 1)
    words = [_RANGE.pack(start, end - start) for start, end in ranges]
    return _HEAD.pack(*head, *own, len(ranges), *returns) + b"".join(words)


def _merged(forbidden: list[CodeRange]) -> list[tuple[int, int]]:
    """Return the ranges in order; where there are too many, neighbours become one, with what lies between them."""
    ranges = sorted({(item.start, item.end) for item in forbidden})
    while len(ranges) > _MAX_RANGES:
        gaps = [ranges[i + 1][0] - ranges[i][1] for i in range(len(ranges) - 1)]
        at = gaps.index(min(gaps))
        ranges[at : at + 2] = [(ranges[at][0], max(ranges[at][1], ranges[at + 1][1]))]
    return ranges
