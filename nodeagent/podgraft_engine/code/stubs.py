# SPDX-License-Identifier: GPL-2.0-only
"""The code that a site jumps to while threads are on both generations, and the jumps themselves (design 3.3).

stub:   push r11; rdgsbase r11; cmp r11,[until]; jae old; cmp r11,[from]; jb old; pop r11; jmp new; old: pop r11; ...
No register is lost (callers compiled with -fipa-ra may keep values in any of them). Flags are dead at an entry, and
nothing lies below the stack pointer. In the middle of a call, where a branch leads back to the site, neither is true:
there the stub steps over the red zone (psABI 3.2.2) and saves the flags.
"""

import struct
from typing import Final

from iced_x86 import BlockEncoder, Code, Instruction, Register

from podgraft_bundle.errors import PodgraftError, Reason
from podgraft_engine.code.prologue import Undo
from podgraft_engine.code.puns import NEAR_JUMP
from podgraft_engine.code.sites import Site

# An upper bound: decision 31, twice a way out of it 11 and a displaced instruction (a call grows) 28 with its jump 5;
# or the undoing 61 with its jump.
STUB_SIZE: Final = 160
# Of each site: its stub, the way past it to the new function, and the stub for leaving a patch that replaced another.
CELLS: Final = 3
SITE_ROOM: Final = CELLS * STUB_SIZE
_OVER_RED_ZONE: Final = b"\x48\x8d\x64\x24\x80"  # lea rsp,[rsp-128]
_BACK_OVER_RED_ZONE: Final = b"\x48\x8d\xa4\x24\x80\0\0\0"  # lea rsp,[rsp+128]
_JUMPS: Final = {Code.CALL_REL32_64: Code.JMP_REL32_64, Code.CALL_RM64: Code.JMP_RM64}
TRAMPOLINE_SIZE: Final = 16
TRAMPOLINES: Final = CELLS * TRAMPOLINE_SIZE
_DECISION: Final = 23  # bytes from rdgsbase to the last branch


def near_jump(address: int, target: int) -> bytes:
    """Encode `jmp rel32`."""
    return b"\xe9" + _rel32(address + NEAR_JUMP, target)


def trampoline(target: int) -> bytes:
    """Encode `jmp *0(%rip)` with the target behind it: from anywhere to anywhere, no register touched."""
    return b"\xff\x25\0\0\0\0" + struct.pack("<Q", target)


def short_jump(address: int, target: int) -> bytes:
    """Encode `jmp rel8`."""
    return b"\xeb" + struct.pack("<b", target - address - 2)


def stub(address: int, site: Site, doors: tuple[int | None, int | None], gate: int) -> bytes:
    """Encode the stub of one site.

    Args:
        address: where the stub will lie.
        site: the site, with the displaced instruction and what stands before it.
        doors: where threads inside of the gate go, and the others; both as at the site. None: on in the original code.
        gate: address of two words: a thread whose GS base lies in [first, second) takes the first door.
    """
    code, restore = b"\x41\x53", b"\x41\x5b"  # push r11, pop r11
    if site.reentrant or site.undo.flags:
        code, restore = code + b"\x9c", b"\x9d" + restore  # pushfq, popfq
    if site.reentrant:
        code, restore = _OVER_RED_ZONE + code, restore + _BACK_OVER_RED_ZONE
    inside = restore + _on(address + len(code) + _DECISION + len(restore), site, doors[0])
    skipped = len(inside)
    code += b"\xf3\x49\x0f\xae\xcb"  # rdgsbase r11
    code += b"\x4c\x3b\x1d" + _rel32(address + len(code) + 7, gate + 8)  # cmp r11, [until]
    code += bytes([0x73, 9 + skipped])  # jae old
    code += b"\x4c\x3b\x1d" + _rel32(address + len(code) + 7, gate)  # cmp r11, [from]
    code += bytes([0x72, skipped])  # jb old
    code += inside
    code += restore  # old:
    code += _on(address + len(code), site, doors[1])
    if len(code) > STUB_SIZE:
        raise PodgraftError(Reason.INTERNAL, f"the stub of {site.function} has {len(code)} bytes")
    return code


def _on(address: int, site: Site, door: int | None) -> bytes:
    """Encode the way on from a site: through a door, or in the original code."""
    if door is not None:
        return near_jump(address, door)
    code = displaced_code(address, site.displaced)
    return code + near_jump(address + len(code), site.displaced.next_ip)


def undo(what: Undo) -> bytes:
    """Encode the way back to the state at the function's entry; all other registers stay."""
    code = b""
    for register, depth in what.restore:
        number = register - Register.RAX
        code += bytes([0x48 | number >> 3 << 2, 0x8B, 0x84 | (number & 7) << 3, 0x24])  # mov r,[rsp+n]
        code += struct.pack("<i", what.stack - depth)
    if what.rax:
        code += b"\xb8\x08\0\0\0"  # mov eax,8
    if what.stack:
        code += b"\x48\x8d\xa4\x24" + struct.pack("<i", what.stack)  # lea rsp,[rsp+n]
    return code


def displaced_code(address: int, instruction: Instruction) -> bytes:
    """Encode the instruction for another place; a call leaves the return address that it leaves in its own place."""
    code, jump = b"", _JUMPS.get(instruction.code)
    if jump is not None:
        low, high = instruction.next_ip & (2**32 - 1), instruction.next_ip >> 32
        # push sign-extends its immediate: the upper half is written on its own.
        code = b"\x68" + struct.pack("<I", low) + b"\xc7\x44\x24\x04" + struct.pack("<I", high)
        instruction = instruction.copy()
        instruction.code = jump
    encoder = BlockEncoder(64)
    encoder.add(instruction)
    return code + encoder.encode(address + len(code))


def _rel32(origin: int, target: int) -> bytes:
    distance = target - origin
    if not -(2**31) <= distance < 2**31:
        raise PodgraftError(Reason.NO_ROOM_NEARBY, f"{target:#x} is out of reach from {origin:#x}")
    return struct.pack("<i", distance)
