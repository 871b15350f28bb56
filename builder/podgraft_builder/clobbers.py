"""Which caller-saved registers a function may change: what GCC's -fipa-ra lets its callers rely on.

Why callers that were compiled again need no look: the comparison has shown that the compiler, knowing the new
function, makes the very same instructions for them. What is left are callers that the new source does not have
any more, and that may still run in the process.
"""

from functools import cache
from typing import Any

from iced_x86 import FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, RegisterExt

from podgraft_builder.code import Step, is_branch
from podgraft_builder.objects import Function, ObjectFile, place_of

# Caller-saved registers (psABI x86-64, figure 3.4).
CALLER_SAVED = frozenset(
    {
        *(Register.RAX, Register.RCX, Register.RDX, Register.RSI, Register.RDI),
        *(Register.R8, Register.R9, Register.R10, Register.R11),
        *(Register.ZMM0 + number for number in range(32)),
    }
)
_WRITES = frozenset({OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE})
_POINTER = 8  # bytes
_CALLS = frozenset({FlowControl.CALL, FlowControl.INDIRECT_CALL, FlowControl.INTERRUPT})


def clobbered(which: ObjectFile, function: Function, *, doubt: bool = False) -> frozenset[int]:
    """Return the caller-saved registers that a function or its callees in the same object may write.

    A call to anything else clobbers all of them. doubt: so does a jump that need not be that of a switch, in a function
    that has one.
    """
    found: set[int] = set()
    seen: set[Function] = set()
    pending = [function]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        written, callees, everything = _direct(which, current, doubt)
        if everything:
            return CALLER_SAVED
        found |= written
        pending += callees
    return frozenset(found & CALLER_SAVED)


@cache
def _direct(which: ObjectFile, function: Function, doubt: bool) -> tuple[frozenset[int], tuple[Function, ...], bool]:
    """Return written registers, callees in the object, and whether something unknown is called."""
    factory, written, callees = InstructionInfoFactory(), set(), []
    steps = which.decoded(function).steps
    for number, step in enumerate(steps):
        instruction = step.instruction
        for used in factory.info(instruction).used_registers():
            if used.access in _WRITES:
                written.add(_full(used.register))
        outside = is_branch(instruction) and bool(step.relocations)
        if outside:
            item = step.relocations[0]
            place = place_of(item, instruction.next_ip - item.offset)
            callee = which.function_at(place.section, place.offset) if place.section is not None else None
            if callee is None:
                return frozenset(), (), True
            callees.append(callee)
        elif (instruction.flow_control in _CALLS and not is_branch(instruction)) or (
            instruction.flow_control == FlowControl.INDIRECT_BRANCH
            and not (_has_table(which, function) and (not doubt or _is_switch(steps[:number], step)))
        ):
            return frozenset(), (), True
    return frozenset(written), tuple(callees), False


def _has_table(which: ObjectFile, function: Function) -> bool:
    """Say whether an indirect jump can be a switch: some constant data points into the function."""
    return any(
        item.symbol.section == function.section
        for section in which.sections.values()
        if section.constant and not section.executable and section.name.startswith((".rodata", ".data.rel.ro"))
        for item in section.relocations
    )


def _is_switch(before: tuple[Step, ...], jump: Step) -> bool:
    """Say whether the target of a jump comes out of an array, or is a sum of a table's place and what it says."""
    factory, target = InstructionInfoFactory(), jump.instruction
    if target.op0_kind == OpKind.MEMORY:
        return bool(target.memory_index_scale == _POINTER)
    for step in reversed(before):
        writes = [u.register for u in factory.info(step.instruction).used_registers() if u.access in _WRITES]
        if _full(target.op0_register) in map(_full, writes):
            loads = step.instruction.mnemonic == Mnemonic.MOV and step.instruction.memory_index_scale == _POINTER
            return bool(step.instruction.mnemonic == Mnemonic.ADD or loads)
    return False


def _full(register: Any) -> int:
    if RegisterExt.is_vector_register(register):
        return Register.ZMM0 + RegisterExt.number(register)
    return RegisterExt.full_register(register)
