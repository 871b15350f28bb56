"""Addresses that old code has given away: who keeps one goes on with what it led to, whatever the new source says."""

from collections.abc import Iterator

from iced_x86 import FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, RegisterExt

from podgraft_builder.callers import address_taken, removed_functions
from podgraft_builder.clobbers import CALLER_SAVED
from podgraft_builder.code import IMMEDIATES, Step
from podgraft_builder.compare import CLASS_TABLES, Comparison
from podgraft_builder.objects import Function, ObjectFile, place_of
from podgraft_builder.subject import Subject
from podgraft_builder.symtab import Symbol
from podgraft_bundle.errors import Reason

# psABI x86-64, figure 3.4
ARGUMENTS = frozenset({Register.RDI, Register.RSI, Register.RDX, Register.RCX, Register.R8, Register.R9})
_WRITES = frozenset({OpAccess.WRITE, OpAccess.COND_WRITE})
_COMPARES = frozenset({Mnemonic.CMP, Mnemonic.TEST})


def check_given(subject: Subject) -> None:
    """Refuse where a callback goes, or a table of functions changes, whose address is kept in a place nobody sees."""
    old = subject.comparison.old
    # What only stands in a table is given away with the table.
    tables = frozenset(
        index
        for index, items in old.variables.items()
        if old.sections[index].constant and all(item.local for item in items)
    )
    for function in removed_functions(subject.comparison):
        where = address_taken(old, function, tables) if ".cold" not in function.name else None
        if where is not None:
            detail = f"{subject.label}: {function.name} goes, and {where} has taken its address"
            subject.verdict.refuse(Reason.CHANGED_DATA, f"{detail}: who keeps it goes on with old code")
    for table in _changed_tables(subject.comparison):
        giver = next((f for f in dict.fromkeys(old.functions.values()) if _gives_away(old, f, table)), None)
        if giver is not None:
            detail = f"{subject.label}: {table.name} changes or goes, and {giver.name} has given its address away"
            subject.verdict.refuse(Reason.CHANGED_DATA, f"{detail}: who keeps it goes on with the old table")


def _changed_tables(comparison: Comparison) -> Iterator[Symbol]:
    """Yield the local constants with addresses of functions that the new object has not got as they were."""
    for index, items in comparison.old.variables.items():
        section = comparison.old.sections[index]
        if not section.constant or section.executable:
            continue
        for old in items:
            plain = old.local and not old.name.startswith(CLASS_TABLES)
            if plain and _holds_functions(comparison.old, old) and not comparison.is_there(old):
                yield old


def _holds_functions(which: ObjectFile, table: Symbol) -> bool:
    for item, place in which.places_of(table.section or 0):
        target = which.sections.get(place.section) if place.section is not None else None
        inside = table.value <= item.offset < table.value + table.size
        if inside and (target is None or any(f.start == place.offset for f in which.functions_in(target.index))):
            return True
    return False


def _gives_away(which: ObjectFile, function: Function, table: Symbol) -> bool:
    """Say whether a function lets the address of a table out: stores it, passes it on, returns it."""
    steps = which.decoded(function).steps
    for number, step in enumerate(steps):
        instruction = step.instruction
        for item in step.relocations:
            place = place_of(item, instruction.next_ip - item.offset)
            if place.section != table.section or not table.value <= place.offset < table.value + max(table.size, 1):
                continue
            loads = instruction.mnemonic == Mnemonic.LEA or instruction.op1_kind in IMMEDIATES
            if loads and instruction.op0_kind == OpKind.REGISTER:
                if _lets_out(steps[number + 1 :], RegisterExt.full_register(instruction.op0_register)):
                    return True
            elif any(instruction.op_kind(n) in IMMEDIATES for n in range(instruction.op_count)):
                return True
    return False


def _lets_out(steps: tuple[Step, ...], register: int) -> bool:  # noqa: PLR0911 (a table of cases)
    """Follow a register in the order of the code until it gets another value."""
    factory = InstructionInfoFactory()
    for step in steps:
        instruction = step.instruction
        flow = instruction.flow_control
        if flow in {FlowControl.CALL, FlowControl.INDIRECT_CALL}:
            if register in ARGUMENTS:
                return True
            if register in CALLER_SAVED:
                return False
        if flow == FlowControl.RETURN:
            return register == Register.RAX
        tail = flow in {FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH}
        if tail and register in ARGUMENTS and (step.relocations or flow == FlowControl.INDIRECT_BRANCH):
            return True
        plain = [n for n in range(instruction.op_count) if instruction.op_kind(n) == OpKind.REGISTER]
        operands = [n for n in plain if RegisterExt.full_register(instruction.op_register(n)) == register]
        info = factory.info(instruction)
        writes = any(info.op_access(n) in _WRITES for n in operands)
        copied = any(info.op_access(n) == OpAccess.READ for n in operands) and instruction.mnemonic not in _COMPARES
        derived = instruction.mnemonic == Mnemonic.LEA and register in {
            RegisterExt.full_register(instruction.memory_base),
            RegisterExt.full_register(instruction.memory_index),
        }
        if copied or (derived and not writes):
            return True
        if writes:
            return False
    return False
