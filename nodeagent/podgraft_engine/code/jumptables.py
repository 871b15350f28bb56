# SPDX-License-Identifier: GPL-2.0-only
"""Where the jump tables of a function lead: no entry may lead to a site (design 3.2).

Every table that the function's code names is read until an entry leaves the function. That may read into the next
table, which only adds targets; it cannot miss one.
"""

import struct
from collections.abc import Callable
from typing import Final

from iced_x86 import FlowControl, Instruction, Mnemonic, Register

MAX_ENTRIES: Final = 4096
Read = Callable[[int, int], bytes | None]


def table_targets(instructions: list[Instruction], bodies: list[tuple[int, int]], read: Read) -> set[int] | None:
    """Return the targets of all jump tables; None when an indirect branch has no table that can be seen.

    Args:
        instructions: the function, decoded.
        bodies: start and end of the function and its cold parts.
        read: gives bytes of the target's read-only data, None where it is not mapped.
    """
    if not any(i.flow_control == FlowControl.INDIRECT_BRANCH for i in instructions):
        return set()
    targets: set[int] = set()
    for instruction in instructions:
        if instruction.mnemonic == Mnemonic.LEA and instruction.is_ip_rel_memory_operand:
            base = instruction.ip_rel_memory_address
            targets |= _entries(base, 4, bodies, read, base)
        elif instruction.flow_control == FlowControl.INDIRECT_BRANCH and instruction.memory_index != Register.NONE:
            targets |= _entries(instruction.memory_displacement, 8, bodies, read, 0)
    return targets or None


def _entries(table: int, width: int, bodies: list[tuple[int, int]], read: Read, base: int) -> set[int]:
    """Read a table of 4-byte distances (position independent) or 8-byte addresses."""
    found: set[int] = set()
    for index in range(MAX_ENTRIES):
        raw = read(table + index * width, width)
        if raw is None:
            break
        target = base + struct.unpack("<i" if width == 4 else "<q", raw)[0]
        if not any(start <= target < end for start, end in bodies):
            break
        found.add(target)
    return found
