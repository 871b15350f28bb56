# SPDX-License-Identifier: GPL-2.0-only
"""The code that a site jumps to while threads are on both generations, and the jumps themselves (design 3.3).

stub:   push r11; rdgsbase r11; cmp r11,[until]; jae old; cmp r11,[from]; pop r11; jae new; old: ...
No register is lost (callers compiled with -fipa-ra may keep values in any of them); flags are dead at an entry.
"""

import struct
from typing import Final

from iced_x86 import BlockEncoder, Instruction

from podgraft_bundle.errors import PodgraftError, Reason
from podgraft_engine.code.sites import NEAR_JUMP, Site, Undo

# An upper bound: decision 33, undo 13, jump 5, displaced instruction 15 (a branch may grow), jump back 5.
STUB_SIZE: Final = 96
TRAMPOLINE_SIZE: Final = 16


def near_jump(address: int, target: int) -> bytes:
    """Encode `jmp rel32`."""
    return b"\xe9" + _rel32(address + NEAR_JUMP, target)


def punned_jump(address: int, length: int, target: int) -> bytes:
    """Encode the first bytes of a `jmp rel32`; the others are the ones that follow in the program."""
    return near_jump(address, target)[:length]


def trampoline(target: int) -> bytes:
    """Encode `jmp *0(%rip)` with the target behind it: from anywhere to anywhere, no register touched."""
    return b"\xff\x25\0\0\0\0" + struct.pack("<Q", target)


def short_jump(address: int, target: int) -> bytes:
    """Encode `jmp rel8`."""
    return b"\xeb" + struct.pack("<b", target - address - 2)


def stub(address: int, site: Site, new: int, gate: int) -> bytes:
    """Encode the stub of one site.

    Args:
        address: where the stub will lie.
        site: the site, with the displaced instruction and what stands before it.
        new: the new function.
        gate: address of two words: a thread whose GS base lies in [first, second) takes the new function.
    """
    code = bytearray(b"\x41\x53")  # push r11
    code += b"\xf3\x49\x0f\xae\xcb"  # rdgsbase r11
    code += b"\x4c\x3b\x1d" + _rel32(address + len(code) + 7, gate + 8)  # cmp r11, [until]
    code += b"\x73\x00"  # jae pop_old
    to_old = len(code)
    code += b"\x4c\x3b\x1d" + _rel32(address + len(code) + 7, gate)  # cmp r11, [from]
    code += b"\x72\x00"  # jb pop_old
    to_old_too = len(code)
    code += b"\x41\x5b"  # pop r11
    code += undo(site.undo)
    code += near_jump(address + len(code), new)
    code[to_old - 1] = len(code) - to_old
    code[to_old_too - 1] = len(code) - to_old_too
    code += b"\x41\x5b"  # pop_old: pop r11
    code += displaced_code(address + len(code), site.displaced)
    code += near_jump(address + len(code), site.address + site.displaced.len)
    if len(code) > STUB_SIZE:
        raise PodgraftError(Reason.INTERNAL, f"the stub of {site.function} has {len(code)} bytes")
    return bytes(code)


def undo(what: Undo) -> bytes:
    """Encode the way back to the state at the function's entry; flags and all other registers stay."""
    code = b""
    if what.rbp_at is not None:
        code += b"\x48\x8b\xac\x24" + struct.pack("<i", what.stack - what.rbp_at)  # mov rbp,[rsp+n]
    if what.stack:
        code += b"\x48\x8d\xa4\x24" + struct.pack("<i", what.stack)  # lea rsp,[rsp+n]
    return code


def displaced_code(address: int, instruction: Instruction) -> bytes:
    """Encode an instruction anew for another address."""
    encoder = BlockEncoder(64)
    encoder.add(instruction)
    return encoder.encode(address)


def _rel32(origin: int, target: int) -> bytes:
    distance = target - origin
    if not -(2**31) <= distance < 2**31:
        raise PodgraftError(Reason.NO_ROOM_NEARBY, f"{target:#x} is out of reach from {origin:#x}")
    return struct.pack("<i", distance)
