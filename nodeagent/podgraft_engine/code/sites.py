# SPDX-License-Identifier: GPL-2.0-only
"""The site ladder: where a function can be entered by a jump that catches no thread in its middle (design 3.2).

The replaced bytes lie inside one original instruction, or in padding. Rungs here: an instruction of at least 5 bytes
takes `jmp rel32`; one of at least 2 bytes takes `jmp rel8` to a hole with a `jmp rel32`, or a punned `jmp rel32` whose
high bytes are the bytes that follow and which leads to a trampoline. A site may stand behind instructions that the stub
can undo.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from iced_x86 import Code, Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register

from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.code.jumptables import table_targets

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
class Pun:
    """Where a punned jump can lead: all addresses in [low, high], a trampoline must be put there."""

    low: int
    high: int


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
    pun: Pun | None = None


class Surroundings(Protocol):
    """What choosing a site needs to know of the process."""

    def holes(self, origin: int, size: int) -> Iterator[int]:
        """Yield free holes of at least `size` bytes that a `jmp rel8` ending at `origin` reaches."""

    def has_room(self, pun: Pun) -> bool:
        """Tell whether a page is free where a punned jump leads."""

    def read(self, address: int, size: int) -> bytes | None:
        """Return bytes of the target, None where it is not mapped."""


def choose_site(name: str, start: int, code: bytes, parts: list[tuple[int, bytes]], surroundings: Surroundings) -> Site:
    """Return the first site that fits.

    Args:
        name: the function, for messages.
        start: its address.
        code: its bytes.
        parts: address and bytes of its cold parts (they may branch back).
        surroundings: holes and room near the function.

    Raises:
        Refusal: NO_PATCH_SITE with what was tried.
    """
    instructions = list(Decoder(64, code, ip=start))
    everything = [*instructions, *(i for address, data in parts for i in Decoder(64, data, ip=address))]
    bodies = [(start, start + len(code)), *((address, address + len(data)) for address, data in parts)]
    tables = table_targets(everything, bodies, surroundings.read)
    targets = _branch_targets(everything) | (tables or set())
    # A branch back to the site, or to what stands before it, would let a running call change generation.
    candidates = [c for c in _candidates(instructions) if not any(start <= t <= c[0].ip for t in targets)]
    candidates = [c for c in candidates if tables is not None or _is_prologue(c[0])]
    for instruction, undo in candidates:
        if instruction.len >= NEAR_JUMP and not _crosses_page(instruction.ip, NEAR_JUMP):
            return Site(name, instruction.ip, NEAR_JUMP, "jmp-rel32", instruction, undo)
    for instruction, undo in candidates:
        if instruction.len >= SHORT_JUMP and not _crosses_page(instruction.ip, SHORT_JUMP):
            for hole in surroundings.holes(instruction.ip + SHORT_JUMP, NEAR_JUMP):
                if not _crosses_page(hole, NEAR_JUMP):
                    return Site(name, instruction.ip, SHORT_JUMP, "jmp-rel8-hole", instruction, undo, hole)
    for instruction, undo in candidates:
        pun = _pun(instruction, code, start)
        if pun is not None and surroundings.has_room(pun):
            return Site(name, instruction.ip, instruction.len, "jmp-punned", instruction, undo, pun=pun)
    seen = "; ".join(str(i) for i in instructions[:3])
    raise Refusal(Reason.NO_PATCH_SITE, f"{name} at {start:#x}: no rung of the site ladder fits ({seen})")


def _pun(instruction: Instruction, code: bytes, start: int) -> Pun | None:
    """Return where `jmp rel32` would lead when only the bytes of this instruction may be chosen."""
    free = instruction.len - 1
    at = instruction.ip - start
    kept = code[at + instruction.len : at + NEAR_JUMP]
    if instruction.len < SHORT_JUMP or instruction.len + len(kept) != NEAR_JUMP:
        return None
    if _crosses_page(instruction.ip, instruction.len):
        return None
    distance = int.from_bytes(bytes(free) + kept, "little", signed=True)
    low = instruction.ip + NEAR_JUMP + distance
    return Pun(low, low + (1 << 8 * free) - 1)


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
