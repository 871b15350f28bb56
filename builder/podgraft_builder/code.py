"""Machine code as a list of instructions, each with the relocation that belongs to it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iced_x86 import Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from podgraft_builder.objects import Relocation

BRANCHES = frozenset(
    {
        FlowControl.CALL,
        FlowControl.UNCONDITIONAL_BRANCH,
        FlowControl.CONDITIONAL_BRANCH,
        FlowControl.XBEGIN_XABORT_XEND,
    }
)
IMMEDIATES = frozenset(
    {
        OpKind.IMMEDIATE8,
        OpKind.IMMEDIATE8TO16,
        OpKind.IMMEDIATE8TO32,
        OpKind.IMMEDIATE8TO64,
        OpKind.IMMEDIATE16,
        OpKind.IMMEDIATE32,
        OpKind.IMMEDIATE32TO64,
        OpKind.IMMEDIATE64,
    }
)


@dataclass(frozen=True)
class Step:
    """One instruction that does something, and its relocations."""

    instruction: Instruction
    relocations: tuple[Relocation, ...]


@dataclass(frozen=True)
class Body:
    """The steps of a function, nops left out.

    `biases` maps a relocation's offset to the number of bytes from there to the end of its instruction.
    """

    steps: tuple[Step, ...]
    starts: tuple[int, ...]
    start: int
    end: int
    biases: dict[int, int]

    def index_of(self, address: int) -> int | None:
        """Return the first step at or behind an address, None outside the function."""
        if not self.start <= address <= self.end:
            return None
        return bisect_left(self.starts, address)


def decode(data: bytes, address: int, relocations: Sequence[Relocation] = ()) -> Body:
    """Decode a function that starts at `address`; relocation offsets are addresses of the same kind."""
    steps: list[Step] = []
    biases: dict[int, int] = {}
    pending = list(relocations)[::-1]
    for instruction in Decoder(64, data, ip=address):
        mine: list[Relocation] = []
        while pending and pending[-1].offset < instruction.next_ip:
            item = pending.pop()
            biases[item.offset] = instruction.next_ip - item.offset
            mine.append(item)
        if mine or not is_nop(instruction):
            steps.append(Step(instruction, tuple(mine)))
    starts = tuple(step.instruction.ip for step in steps)
    return Body(tuple(steps), starts, address, address + len(data), biases)


def is_nop(instruction: Instruction) -> bool:
    """Say whether an instruction only fills space (nop in all lengths, xchg ax,ax)."""
    if instruction.mnemonic == Mnemonic.XCHG:
        return bool(instruction.op0_register == instruction.op1_register == Register.AX)
    return bool(instruction.mnemonic == Mnemonic.NOP)


def is_branch(instruction: Instruction) -> bool:
    """Say whether the target is a constant: call, jmp or jcc to an address."""
    return instruction.flow_control in BRANCHES and instruction.op0_kind in {
        OpKind.NEAR_BRANCH16,
        OpKind.NEAR_BRANCH32,
        OpKind.NEAR_BRANCH64,
    }
