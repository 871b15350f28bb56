# SPDX-License-Identifier: GPL-2.0-only
"""What may stand before a site: instructions whose effect the stub takes back before it enters the new function.

These are pushes, room on the stack, and arithmetic on registers that were pushed before: the old value is on the stack.
Nothing that reads or writes memory otherwise: the fix may be just that such an access must not happen. `rax` holds
nothing at an entry but, in `al`, an upper bound of the vector registers that a variadic call uses (psABI 3.2.3): 8 is
always right. Flags hold nothing (psABI 3.2.1), but the old code may use them behind the site.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from iced_x86 import (
    Code,
    FlowControl,
    Instruction,
    InstructionInfoFactory,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
)

from podgraft_engine.target.layout import PAGE

# The stub uses the stack below: it must not step over a guard page. (A larger `sub` is itself long enough for a jump.)
LARGEST_FRAME: Final = PAGE
MOST_CHANGED: Final = 6
_PUSHED: Final = (Code.PUSH_R64, Code.PUSHQ_IMM8, Code.PUSHQ_IMM32)
_ARITHMETIC: Final = frozenset(
    {
        *(Mnemonic.MOV, Mnemonic.MOVZX, Mnemonic.MOVSX, Mnemonic.MOVSXD, Mnemonic.LEA),
        *(Mnemonic.ADD, Mnemonic.SUB, Mnemonic.AND, Mnemonic.OR, Mnemonic.XOR),
        *(Mnemonic.SHL, Mnemonic.SHR, Mnemonic.SAR, Mnemonic.TEST, Mnemonic.CMP),
    }
)
_NO_ACCESS: Final = (OpAccess.NONE, OpAccess.NO_MEM_ACCESS)
_READ: Final = (OpAccess.READ, OpAccess.COND_READ, OpAccess.NONE, OpAccess.NO_MEM_ACCESS)
_INFO: Final = InstructionInfoFactory()


@dataclass(frozen=True)
class Undo:
    """The state at a site.

    stack: bytes that were taken. restore: registers, and how far below the entry's stack pointer their old values lie.
    rax: it was changed and is not on the stack. flags: they may be in use.
    """

    stack: int = 0
    restore: tuple[tuple[int, int], ...] = ()
    rax: bool = False
    flags: bool = False

    @property
    def needed(self) -> bool:
        """Tell whether there is anything to take back."""
        return bool(self.stack or self.restore or self.rax)


def prologue(instructions: list[Instruction]) -> Iterator[tuple[Instruction, Undo]]:
    """Yield each instruction with the state before it, as long as that can be undone."""
    state = _State()
    for instruction in instructions:
        if instruction.code == Code.INVALID:
            return
        yield instruction, state.undo()
        if not state.passes(instruction):
            return


class _State:
    """What the instructions so far have done."""

    def __init__(self) -> None:
        self._stack = 0
        self._saved: dict[int, int] = {}
        self._changed: set[int] = set()
        self._flags = False

    def undo(self) -> Undo:
        changed = sorted(self._changed)
        restore = tuple((r, self._saved[r]) for r in changed if r in self._saved)
        return Undo(self._stack, restore, len(restore) < len(changed), self._flags)

    def passes(self, instruction: Instruction) -> bool:
        """Add one instruction; False when it cannot be undone."""
        if instruction.code == Code.ENDBR64 or instruction.mnemonic == Mnemonic.NOP:
            return True
        self._flags |= bool(instruction.rflags_modified)
        if instruction.code in _PUSHED:
            self._stack += 8
            if instruction.op0_kind == OpKind.REGISTER and instruction.op0_register not in self._changed:
                self._saved.setdefault(instruction.op0_register, self._stack)
            return True
        if instruction.op0_kind == OpKind.REGISTER and instruction.op0_register == Register.RSP:
            size = _stack_taken(instruction)
            self._stack += size
            return 0 < size <= LARGEST_FRAME
        return self._is_arithmetic(instruction)

    def _is_arithmetic(self, instruction: Instruction) -> bool:
        if instruction.mnemonic not in _ARITHMETIC or instruction.flow_control != FlowControl.NEXT:
            return False
        info = _INFO.info(instruction)
        if any(used.access not in _NO_ACCESS for used in info.used_memory()):
            return False
        written = [used.register for used in info.used_registers() if used.access not in _READ]
        if not all(RegisterExt.is_gpr(register) for register in written):
            return False
        self._changed |= {RegisterExt.full_register(register) for register in written}
        return len(self._changed) <= MOST_CHANGED and all(
            r == Register.RAX or (r in self._saved and r != Register.RSP) for r in self._changed
        )


def _stack_taken(instruction: Instruction) -> int:
    """Return by how much the stack pointer goes down; 0 where that cannot be said."""
    if instruction.code in (Code.SUB_RM64_IMM8, Code.SUB_RM64_IMM32):
        return instruction.immediate(1)
    if instruction.code in (Code.ADD_RM64_IMM8, Code.ADD_RM64_IMM32):
        return 2**64 - instruction.immediate(1)
    if (
        instruction.code == Code.LEA_R64_M
        and instruction.memory_base == Register.RSP
        and instruction.memory_index == Register.NONE
    ):
        return 2**64 - instruction.memory_displacement
    return 0
