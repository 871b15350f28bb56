"""Labels that a function takes from its tables and lets out: kept in memory, they would lead new code into the old.

What may come out of a table is followed through registers and the frame, along all ways through the function.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from iced_x86 import FlowControl, InstructionInfoFactory, MemorySizeExt, Mnemonic, OpAccess, OpKind, Register
from iced_x86 import RegisterExt as Registers

from podgraft_builder import reloc
from podgraft_builder.clobbers import CALLER_SAVED
from podgraft_builder.code import IMMEDIATES, Step, is_branch
from podgraft_builder.given import ARGUMENTS
from podgraft_builder.labels import leads_into
from podgraft_builder.objects import Function, ObjectFile, Place, place_of
from podgraft_builder.symtab import Symbol

_READS = frozenset({OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE})
_WRITES = frozenset({OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE})
_NOTHING = frozenset({Mnemonic.CMP, Mnemonic.TEST})  # what is read goes nowhere
_COPIES = frozenset({Mnemonic.MOVSB, Mnemonic.MOVSW, Mnemonic.MOVSD, Mnemonic.MOVSQ})
_CALLS = frozenset({FlowControl.CALL, FlowControl.INDIRECT_CALL})
_ENDS = frozenset(
    {FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH, FlowControl.RETURN, FlowControl.EXCEPTION}
)
_CELL = 8
_FRESH, _EARLY, _LEFT_OVER = range(3)


class _Value(NamedTuple):
    """A label, or the address of a table; age: whether it may be meant for the call or return that comes.

    What a jump took its target from is a left-over behind it. Compilers load the address of a table before a branch,
    too, of which one side alone needs it: then it is no argument, but may be what is returned.
    """

    table: bool
    age: int = _FRESH

    def behind(self, flow: int) -> "_Value":
        """Return what is left of it behind a branch."""
        if flow == FlowControl.INDIRECT_BRANCH:
            return self._replace(age=_LEFT_OVER)
        early = self.table and flow == FlowControl.CONDITIONAL_BRANCH
        return self._replace(age=max(self.age, _EARLY)) if early else self


class _Held(NamedTuple):
    """A register, or a cell of the frame (base, displacement), and what it may hold."""

    where: int | tuple[int, int]
    value: _Value


_State = frozenset[_Held]


def lets_labels_out(which: ObjectFile, pieces: tuple[Function, ...]) -> bool:
    """Say whether a function, with its cold parts, lets out what constant tables of its labels hold."""
    return _Flow(which, pieces).lets_out()


@dataclass
class _Flow:
    which: ObjectFile
    pieces: tuple[Function, ...]
    states: dict[int, _State] = field(default_factory=dict)
    factory: InstructionInfoFactory = field(default_factory=InstructionInfoFactory)

    def lets_out(self) -> bool:
        """Go along all ways until nothing new is learnt."""
        if not self.tables:
            return False
        pending = [number for number, step in enumerate(self.steps) if self._names_table(step)]
        while pending:
            number = pending.pop()
            step, before = self.steps[number], self.states.get(number, frozenset())
            value = self._value(step, before)
            if self._escapes(number, before, value):
                return True
            after = self._after(step, before, value)
            after = frozenset(_Held(where, kept.behind(step.instruction.flow_control)) for where, kept in after)
            for follower in self._followers(number):
                known = self.states.get(follower, frozenset())
                if not after <= known:
                    self.states[follower] = known | after
                    pending.append(follower)
        return False

    @cached_property
    def steps(self) -> list[Step]:
        """Return the instructions of all pieces, one behind the other."""
        return [step for piece in self.pieces for step in self.which.decoded(piece).steps]

    @cached_property
    def labels(self) -> dict[int, list[int]]:
        """Return constant section -> the instructions that its addresses lead to, the entry left out."""
        found: dict[int, list[int]] = {}
        for index, section in self.which.sections.items():
            if section.constant and not section.executable:
                places = [place for item, place in self.which.places_of(index) if item.type == reloc.R_64]
                entry = self.pieces[0]
                inside = [p for p in places if (p.section, p.offset) != (entry.section, entry.start)]
                found[index] = [number for place in inside if (number := self._number(place)) is not None]
        return found

    @cached_property
    def tables(self) -> set[Symbol | int]:
        """Return the constants that lead to labels of the function; sections where they have no name."""
        names = {piece.name.partition(".cold")[0] for piece in self.pieces}
        found: set[Symbol | int] = set()
        for index, labels in self.labels.items():
            variables = self.which.variables.get(index, [])
            found |= {variable for variable in variables if leads_into(self.which, variable, names)}
            found |= {index} if labels and not variables else set()
        return found

    @cached_property
    def frames(self) -> set[int]:
        """Return the registers that point into the frame."""
        pointer = any(
            step.instruction.mnemonic == Mnemonic.MOV
            and (step.instruction.op0_register, step.instruction.op1_register) == (Register.RBP, Register.RSP)
            for step in self.steps
        )
        return {Register.RSP, Register.RBP} if pointer else {Register.RSP}

    @cached_property
    def targets(self) -> list[int]:
        """Return where an indirect jump may lead: labels, and what only a jump can lead to."""
        ends = [n for n, step in enumerate(self.steps[:-1]) if step.instruction.flow_control in _ENDS]
        alone = {n + 1 for n in ends}.difference(self.branches.values())
        return sorted(alone.union(*self.labels.values()))

    def _number(self, place: Place) -> int | None:
        first = 0
        for piece in self.pieces:
            body = self.which.decoded(piece)
            if place.section == piece.section and piece.start <= place.offset < piece.start + piece.size:
                return first + (body.index_of(place.offset) or 0)
            first += len(body.steps)
        return None

    def _names_table(self, step: Step) -> bool:
        places = [place_of(item, step.instruction.next_ip - item.offset) for item in step.relocations]
        return any(p.section in self.tables or self.which.variable_at(p) in self.tables for p in places)

    def _value(self, step: Step, before: _State) -> _Value | None:
        """Return what an instruction reads of that which is followed."""
        instruction, access = step.instruction, self.factory.info(step.instruction)
        if instruction.mnemonic in _NOTHING:
            return None
        lea = instruction.mnemonic == Mnemonic.LEA
        found: list[_Value] = []
        for number in range(instruction.op_count):
            kind = instruction.op_kind(number)
            if kind == OpKind.MEMORY and (lea or access.op_access(number) in _READS):
                found += self._loaded(step, before, lea=lea)
            elif kind == OpKind.REGISTER and access.op_access(number) in _READS:
                found += _in_register(before, instruction.op_register(number))
            elif kind in IMMEDIATES and self._names_table(step):
                found.append(_Value(table=True))
        return _Value(all(v.table for v in found), min(v.age for v in found)) if found else None

    def _loaded(self, step: Step, before: _State, *, lea: bool) -> list[_Value]:
        instruction = step.instruction
        base, index = instruction.memory_base, instruction.memory_index
        found = [*_in_register(before, base), *_in_register(before, index)]
        if self._names_table(step):
            found.append(_Value(table=True))
        if lea:
            return found
        found = [value._replace(table=False) for value in found]
        if base in self.frames:
            cells = set(self._cells(step))
            mine = [held for held in before if isinstance(held.where, tuple) and held.where[0] == base]
            found += [held.value for held in mine if index != Register.NONE or held.where in cells]
        return found

    def _cells(self, step: Step) -> Iterator[tuple[int, int]]:
        at = step.instruction.memory_displacement
        for offset in range(0, max(MemorySizeExt.size(step.instruction.memory_size), 1), _CELL):
            yield step.instruction.memory_base, at + offset

    def _stores(self, step: Step) -> bool:
        access = self.factory.info(step.instruction)
        operands = range(step.instruction.op_count)
        return any(step.instruction.op_kind(n) == OpKind.MEMORY and access.op_access(n) in _WRITES for n in operands)

    def _escapes(self, number: int, before: _State, value: _Value | None) -> bool:
        step = self.steps[number]
        instruction = step.instruction
        flow = instruction.flow_control
        if flow in _CALLS or (flow == FlowControl.UNCONDITIONAL_BRANCH and number not in self.branches):
            return any(held.value.age == _FRESH and held.where in ARGUMENTS for held in before)
        if flow == FlowControl.RETURN:
            return any(value.age != _LEFT_OVER for value in _in_register(before, Register.RAX))
        if instruction.is_string_instruction and instruction.mnemonic in _COPIES:  # MOVSD is of SSE, too
            return bool(_in_register(before, Register.RSI))
        if instruction.mnemonic == Mnemonic.PUSH:
            return value is not None and value.age == _FRESH
        return value is not None and self._stores(step) and instruction.memory_base not in self.frames

    def _after(self, step: Step, before: _State, value: _Value | None) -> _State:
        instruction = step.instruction
        gone: set[object] = set(CALLER_SAVED) if instruction.flow_control in _CALLS else set()
        into: set[int | tuple[int, int]] = set()
        access = self.factory.info(instruction)
        for used in access.used_registers():
            if used.access == OpAccess.WRITE:
                gone.add(Registers.full_register(used.register))
        for number in range(instruction.op_count):
            if instruction.op_kind(number) == OpKind.REGISTER and access.op_access(number) in _WRITES:
                into.add(Registers.full_register(instruction.op_register(number)))
        if self._stores(step) and instruction.memory_base in self.frames:
            cells = set(self._cells(step))
            into |= cells
            gone |= cells if instruction.memory_index == Register.NONE else set()
        kept = frozenset(held for held in before if held.where not in gone)
        return kept if value is None else kept | {_Held(where, value) for where in into}

    @cached_property
    def branches(self) -> dict[int, int]:
        """Return the direct branches that stay inside the function, and where they lead."""
        found, first = {}, 0
        for piece in self.pieces:
            body = self.which.decoded(piece)
            for number, step in enumerate(body.steps, first):
                to = step.instruction
                if not is_branch(to) or to.flow_control == FlowControl.CALL:
                    continue
                if step.relocations:
                    target = self._number(place_of(step.relocations[0], to.next_ip - step.relocations[0].offset))
                else:
                    inside = body.index_of(to.near_branch_target)
                    target = first + inside if inside is not None else None
                if target is not None and target < len(self.steps):
                    found[number] = target
            first += len(body.steps)
        return found

    def _followers(self, number: int) -> list[int]:
        flow = self.steps[number].instruction.flow_control
        if flow == FlowControl.INDIRECT_BRANCH:
            return self.targets
        found = [number + 1] if flow not in _ENDS and number + 1 < len(self.steps) else []
        return [*found, self.branches[number]] if number in self.branches else found


def _in_register(before: _State, register: Any) -> list[_Value]:
    full = Registers.full_register(register) if register != Register.NONE else register
    return [held.value for held in before if held.where == full]
