# SPDX-License-Identifier: GPL-2.0-only
"""The site ladder: where a function can be entered by a jump that catches no thread in its middle (design 3.2).

The replaced bytes lie inside one original instruction, or in padding. Rungs here: an instruction of at least 5 bytes
takes `jmp rel32`; one of at least 2 bytes takes `jmp rel8` to a hole with a `jmp rel32`. A site may stand behind
instructions that the stub can undo.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from iced_x86 import Code, Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register

from podgraft_bundle.errors import Reason, Refusal

NEAR_JUMP: Final = 5
SHORT_JUMP: Final = 2
PAGE: Final = 4096
_PUSHED: Final = (Code.PUSH_R64,)
_STACK_SUB: Final = (Code.SUB_RM64_IMM8, Code.SUB_RM64_IMM32)


@dataclass
class Undo:
    """What stands before the site and must be undone before the new function: stack bytes, and where rbp lies."""

    stack: int = 0
    rbp_at: int | None = None


@dataclass(frozen=True)
class Site:
    """A place for the jump: address and length of the replaced bytes, the displaced instruction, what to undo."""

    function: str
    address: int
    length: int
    rung: str
    displaced: Instruction
    undo: Undo
    hole: int | None = None


# (address behind a short jump, bytes needed) -> free holes that the short jump reaches
HoleFinder = Callable[[int, int], Iterator[int]]


def choose_site(name: str, start: int, code: bytes, parts: list[tuple[int, bytes]], holes: HoleFinder) -> Site:
    """Return the first site that fits.

    Args:
        name: the function, for messages.
        start: its address.
        code: its bytes.
        parts: address and bytes of its cold parts (they may branch back).
        holes: yields addresses of free holes of at least a given size that a `jmp rel8` at an address reaches.

    Raises:
        Refusal: NO_PATCH_SITE with what was tried.
    """
    instructions = list(Decoder(64, code, ip=start))
    targets = _branch_targets(instructions)
    for address, data in parts:
        targets |= _branch_targets(list(Decoder(64, data, ip=address)))
    indirect = any(i.flow_control == FlowControl.INDIRECT_BRANCH for i in instructions)
    # A branch back to the site, or to what stands before it, would let a running call change generation.
    candidates = [c for c in _candidates(instructions) if not any(start <= t <= c[0].ip for t in targets)]
    candidates = [c for c in candidates if not indirect or _is_prologue(c[0])]
    for instruction, undo in candidates:
        if instruction.len >= NEAR_JUMP and not _crosses_page(instruction.ip, NEAR_JUMP):
            return Site(name, instruction.ip, NEAR_JUMP, "jmp-rel32", instruction, undo)
    for instruction, undo in candidates:
        if instruction.len >= SHORT_JUMP and not _crosses_page(instruction.ip, SHORT_JUMP):
            for hole in holes(instruction.ip + SHORT_JUMP, NEAR_JUMP):
                if not _crosses_page(hole, NEAR_JUMP):
                    return Site(name, instruction.ip, SHORT_JUMP, "jmp-rel8-hole", instruction, undo, hole)
    seen = "; ".join(str(i) for i in instructions[:3])
    raise Refusal(Reason.NO_PATCH_SITE, f"{name} at {start:#x}: no rung of the site ladder fits ({seen})")


def _candidates(instructions: list[Instruction]) -> Iterator[tuple[Instruction, Undo]]:
    """Yield the instructions that may be displaced, as long as all before them can be undone."""
    undo = Undo()
    for instruction in instructions:
        if instruction.code == Code.INVALID:
            return
        if instruction.code != Code.ENDBR64 and displaceable(instruction):
            yield instruction, Undo(undo.stack, undo.rbp_at)
        if not _undoable(instruction, undo):
            return


def displaceable(instruction: Instruction) -> bool:
    """Tell whether the instruction means the same when it is executed in the stub."""
    if instruction.is_jcx_short or instruction.is_loop or instruction.is_loopcc:
        return False
    return instruction.flow_control in (
        FlowControl.NEXT,
        FlowControl.UNCONDITIONAL_BRANCH,
        FlowControl.CONDITIONAL_BRANCH,
    )


def _undoable(instruction: Instruction, undo: Undo) -> bool:
    """Add one instruction to what must be undone; False when it cannot be."""
    if instruction.code == Code.ENDBR64:
        return True
    if instruction.code in _PUSHED:
        undo.stack += 8
        if instruction.op0_register == Register.RBP and undo.rbp_at is None:
            undo.rbp_at = undo.stack
        return True
    if instruction.mnemonic == Mnemonic.SUB and instruction.op0_register == Register.RSP:
        if instruction.code in _STACK_SUB:
            undo.stack += instruction.immediate(1)
            return True
        return False
    if instruction.mnemonic == Mnemonic.MOV and instruction.op0_register == Register.RBP:
        return (
            instruction.op1_kind == OpKind.REGISTER
            and instruction.op1_register == Register.RSP
            and undo.rbp_at is not None
        )
    return False


def _is_prologue(instruction: Instruction) -> bool:
    """Tell whether no jump table can lead here: prologues run once."""
    if instruction.mnemonic == Mnemonic.PUSH:
        return True
    return instruction.mnemonic == Mnemonic.SUB and instruction.op0_register == Register.RSP


def _branch_targets(instructions: list[Instruction]) -> set[int]:
    """Return where direct branches lead; a recursive call is no branch, it enters anew."""
    kinds = (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CONDITIONAL_BRANCH)
    return {
        i.near_branch_target for i in instructions if i.flow_control in kinds and i.op0_kind == OpKind.NEAR_BRANCH64
    }


def _crosses_page(address: int, size: int) -> bool:
    return address // PAGE != (address + size - 1) // PAGE
