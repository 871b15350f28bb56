"""Prove that the running binary has the code of an object, and learn from it where everything is.

Two functions are equal when they are the same instruction by instruction, nops left out, branch lengths aside, and
every relocation of the object leads to one and the same thing in the running binary wherever it occurs.
"""

from dataclasses import dataclass, field

from iced_x86 import Instruction

from podgraft_builder import reloc
from podgraft_builder.code import IMMEDIATES, Body, Step, decode, is_branch
from podgraft_builder.instructions import Mismatch, both, memory_target, relocated_value, same_instruction
from podgraft_builder.objects import (
    FUNCTION_KINDS,
    IFUNC_KINDS,
    Function,
    ObjectFile,
    Place,
    Relocation,
    Section,
    place_of,
)
from podgraft_builder.running import DEBUG_FOLDER, DTPMOD64, RELATIVE, Named, RunningBinary
from podgraft_bundle.errors import Reason, Refusal


@dataclass
class Proof:
    """What the functions of one object say about the running binary.

    sections: object section -> its address. names: undefined name -> address (a PLT entry where it is imported).
    slots: name -> GOT slot. functions: function -> address. inside: place in the middle of a function -> address: a
    cold part jumps back there, and distances may differ because branches are short or long.
    """

    object: ObjectFile
    running: RunningBinary
    sections: dict[int, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    functions: dict[Function, Named] = field(default_factory=dict)
    inside: dict[tuple[int, int], int] = field(default_factory=dict)

    def prove(self, function: Function) -> Named:
        """Find a function in the running binary. Raises Refusal(RUNNING_BINARY_DIFFERS)."""
        if function in self.functions:
            return self.functions[function]
        candidates = self._candidates(function)
        if not candidates and self.running.partial:
            raise Refusal(
                Reason.RUNNING_BINARY_DIFFERS,
                f"{function.name} ({self.object.label}): nothing in {self.running.path}, which has no symbols, is known"
                " to be this function: its code is another's, or differs",
                f"install its debug file (below {DEBUG_FOLDER}), or name a copy with symbols (--running)",
            )
        if not candidates:
            raise Refusal(
                Reason.RUNNING_BINARY_DIFFERS, f"{function.name} ({self.object.label}) is not in {self.running.path}"
            )
        errors, good = [], []
        for candidate in candidates:
            trial = self.copy()
            try:
                trial.match_at(function, candidate)
            except Mismatch as error:
                errors.append(str(error))
            else:
                good.append((candidate, trial))
        if len({candidate.address for candidate, _ in good}) > 1:
            raise Refusal(
                Reason.RUNNING_BINARY_DIFFERS,
                f"{function.name} ({self.object.label}) equals {len(good)} functions of that name that run",
            )
        if not good:
            raise Refusal(Reason.RUNNING_BINARY_DIFFERS, f"{function.name} ({self.object.label}): {errors[0]}")
        candidate, trial = good[0]
        self.adopt(trial)
        self.functions[function] = candidate
        return candidate

    def _candidates(self, function: Function) -> list[Named]:
        named = self.running.named(function.name, local=function.local)
        found = [item for item in named if item.kind in FUNCTION_KINDS]
        if function.local:
            found = [item for item in found if item.file == self.object.source] or found
        else:  # a hidden symbol is global in its object and local in the program
            found = [item for item in found if not item.local] or found
        known = self.sections.get(function.section)
        if known is not None:
            found = [item for item in found if item.address == known + function.start]
        return found

    def copy(self) -> "Proof":
        """Return a proof that may fail without harm."""
        return Proof(
            self.object,
            self.running,
            dict(self.sections),
            dict(self.names),
            dict(self.slots),
            dict(self.functions),
            dict(self.inside),
        )

    def adopt(self, other: "Proof") -> None:
        """Take over what a copy has learnt."""
        self.sections, self.names, self.slots = other.sections, other.names, other.slots
        self.inside = other.inside

    def finish(self) -> None:
        """Check the references into the middle of functions, proving those functions too. Raises Refusal."""
        for (section, offset), address in sorted(self.inside.items()):
            function = self.object.function_at(section, offset)
            if function is None:
                raise Refusal(Reason.RUNNING_BINARY_DIFFERS, f"{self.object.label}: no function at {offset:#x}")
            named = self.prove(function)
            theirs = decode(self.running.read(named.address, named.size) or b"", named.address)
            if self.object.decoded(function).index_of(offset) != theirs.index_of(address):
                raise Refusal(
                    Reason.RUNNING_BINARY_DIFFERS, f"a jump into {function.name} leads elsewhere in the running binary"
                )

    def match_at(self, function: Function, candidate: Named) -> None:
        """Match a function with the code at one address, learning as it goes. Raises Mismatch."""
        data = self.running.read(candidate.address, candidate.size)
        if data is None or not candidate.size:
            raise Mismatch(f"no bytes at {candidate.address:#x}")
        self.learn_section(function.section, candidate.address - function.start)
        ours = self.object.decoded(function)
        theirs = decode(data, candidate.address)
        if len(ours.steps) != len(theirs.steps):
            self._first_difference(ours, theirs)
        tables: list[Place] = []
        for a, b in zip(ours.steps, theirs.steps, strict=True):
            self._match_step(a, b, ours, theirs, tables)
        for section in {place.section for place in tables if place.section is not None}:
            self._match_tables(section, ours, theirs, function)

    def _first_difference(self, ours: Body, theirs: Body) -> None:
        for a, b in zip(ours.steps, theirs.steps, strict=False):
            if a.instruction.mnemonic != b.instruction.mnemonic:
                raise Mismatch(both(a.instruction, b.instruction))
        raise Mismatch(f"{len(ours.steps)} instructions built, {len(theirs.steps)} running")

    def _match_step(self, a: Step, b: Step, ours: Body, theirs: Body, tables: list[Place]) -> None:
        x, y = a.instruction, b.instruction
        if len(a.relocations) > 1:
            self._match_two(a, y, tables)
            return
        item = a.relocations[0] if a.relocations else None
        if item is not None and item.type in reloc.GOT | {reloc.R_GOTTPOFF}:
            self._match_got(item, x, y)
        elif is_branch(x):
            self._match_branch(item, x, y, ours, theirs)
        elif item is None and x.is_ip_rel_memory_operand and memory_target(y) is not None:
            a_index, b_index = ours.index_of(x.memory_displacement), theirs.index_of(y.memory_displacement)
            if not same_instruction(x, y, free="displacement") or a_index is None or a_index != b_index:
                raise Mismatch(both(x, y))
        elif item is None:
            if not same_instruction(x, y, free=None):
                raise Mismatch(both(x, y))
        else:
            field_, value = relocated_value(item, x, y)
            if not same_instruction(x, y, free=field_):
                raise Mismatch(both(x, y))
            self.learn(item, place_of(item, x.next_ip - item.offset), value, tables)

    def _match_two(self, a: Step, y: Instruction, tables: list[Place]) -> None:
        """Match an instruction with two relocations: displacement and immediate (`movq $sym, other(%rip)`)."""
        x = a.instruction
        free = {"displacement", "immediate"}
        if not same_instruction(x, y, free=free):
            raise Mismatch(both(x, y))
        for item in a.relocations:
            name, value = relocated_value(item, x, y)
            if name not in free:
                raise Mismatch(both(x, y))
            free.discard(name)
            self.learn(item, place_of(item, x.next_ip - item.offset), value, tables)

    def _match_branch(self, item: Relocation | None, x: Instruction, y: Instruction, ours: Body, theirs: Body) -> None:
        if not is_branch(y) or x.mnemonic != y.mnemonic:
            raise Mismatch(both(x, y))
        target = y.near_branch_target
        if item is None:
            a, b = ours.index_of(x.near_branch_target), theirs.index_of(target)
            if a is None or a != b:
                raise Mismatch(both(x, y) + ": other target")
            return
        place = place_of(item, x.next_ip - item.offset)
        own = place.section is not None and not item.symbol.local
        if own and place.offset == item.symbol.value and self.running.plt.get(target) == item.symbol.name:
            return  # exported by a library, and called as the loader decides: nothing to learn of our own function
        if place.section is not None and ours.start <= place.offset < ours.end and self._is_self(place, ours):
            if ours.index_of(place.offset) != theirs.index_of(target):
                raise Mismatch(both(x, y) + ": other target")
            return
        self.learn(item, place, target, [])

    def _is_start(self, place: Place) -> bool:
        return any(f.start == place.offset for f in self.object.functions_in(place.section or 0))

    def _is_self(self, place: Place, ours: Body) -> bool:
        function = self.object.function_at(place.section or 0, place.offset)
        return function is not None and self.object.decoded(function) is ours

    def _match_got(self, item: Relocation, x: Instruction, y: Instruction) -> None:
        """Match a use of a GOT slot, or what the linker relaxed it to (psABI section B.2 "Optimize GOTPCRELX")."""
        name = item.symbol.name
        target = memory_target(y)
        if x.code == y.code and target is not None and same_instruction(x, y, free="displacement"):
            if self.slots.setdefault(name, target) != target:
                raise Mismatch(f"two GOT slots of {name}")
            filled = self.running.slots.get(target)
            if filled is not None and filled[0] != name:
                raise Mismatch(f"GOT slot of {filled[0]} where {name} was built")
            if filled is None:
                self._match_slot(item, target)
            return
        if item.type == reloc.R_GOTTPOFF:  # relaxed to an immediate or an offset (psABI section 4.4.3, IE -> LE)
            constant = y.op_count > 1 and y.op1_kind in IMMEDIATES
            self._check_thread_local(item, y.immediate(1) if constant else y.memory_displacement, 0)
            return
        place = Place(item.symbol, item.symbol.section, item.symbol.value, item.symbol.value)
        direct = y.near_branch_target if is_branch(y) else target
        if direct is None and y.op_count > 1 and y.op1_kind in IMMEDIATES:
            direct = y.immediate(1)
        if direct is None:
            raise Mismatch(both(x, y))
        self.learn(item, place, direct, [])

    def _match_slot(self, item: Relocation, slot: int) -> None:
        """Match a GOT slot that the file itself tells all about, but for where it is loaded."""
        _, kind, value = self.running.pointer(slot)
        if kind == RELATIVE and item.type == reloc.R_GOTTPOFF:
            self._check_thread_local(item, value, 0)
        elif kind == RELATIVE and value:  # 0 is a weak name that nobody defines
            place = Place(item.symbol, item.symbol.section, item.symbol.value, item.symbol.value)
            self.learn(item, place, value, [])
        elif kind != RELATIVE:  # a resolver, or the place of a thread-local variable
            known = {n.address for n in self._named(item.symbol.name, local=item.symbol.local)}
            if known and value not in known:
                raise Mismatch(f"{item.symbol.name} was built, {value:#x} runs")

    def learn(self, item: Relocation, place: Place, value: int, tables: list[Place]) -> None:
        """Note where a reference leads; a second, other answer is a mismatch."""
        if item.type in reloc.THREAD_LOCAL:
            self._learn_thread_local(item, value)
            return
        if place.section is None or item.symbol.kind in IFUNC_KINDS:
            self._learn_name(item.symbol.name, value - place.offset + place.element)
            return
        section = self.object.sections.get(place.section)
        if section is None:
            raise Mismatch(f"reference to section {place.section}")
        if section.strings:
            self._check_string(section, place, value)
        elif section.pooled:
            start, mine = section.element(place.element)
            if self.running.read(value - place.offset + start, len(mine)) != mine:
                raise Mismatch(f"other constant at {value:#x}")
        elif section.executable and not self._is_start(place):
            known = self.inside.setdefault((section.index, place.offset), value)
            if known != value:
                raise Mismatch(f"{section.name}+{place.offset:#x} is at {value:#x} and at {known:#x}")
        else:
            self.learn_section(section.index, value - place.offset)
            if section.constant and not section.executable:
                tables.append(place)

    def _learn_thread_local(self, item: Relocation, value: int) -> None:
        """Match a distance in a block of thread-local variables, or what __tls_get_addr is given (psABI, 4.4.6)."""
        name, offset = item.symbol.name, value - item.addend
        if item.type == reloc.R_TPOFF32:
            self._check_thread_local(item, value, item.addend)
            return
        if item.type in {reloc.R_TLSGD, reloc.R_TLSLD}:
            if self.running.pointer(value)[1] != DTPMOD64 or self.slots.setdefault(f"{name}@tls", value) != value:
                raise Mismatch(f"thread-local {name or 'data'} was built, something else runs")
            filled, _, offset = self.running.pointer(value + 8)
            if filled and filled != name:
                raise Mismatch(f"thread-local {name} was built, {filled} runs")
            if filled or item.type == reloc.R_TLSLD:
                return
        known = {n.address for n in self._named(name, local=item.symbol.local) if n.kind == "STT_TLS"}
        if known and offset not in known:
            raise Mismatch(f"thread-local {name} was built, another variable runs")

    def _check_thread_local(self, item: Relocation, value: int, addend: int) -> None:
        """An existing variable has one distance from the thread pointer, in 32 bits; its symbol tells which."""
        name = item.symbol.name
        known = [n for n in self.running.by_name.get(name, []) if n.kind == "STT_TLS"]
        if item.symbol.local:
            known = [n for n in known if n.file == self.object.source]
        offsets = {offset + addend for n in known if (offset := self.running.tpoff(n)) is not None}
        if offsets and not any((value - offset) % (1 << 32) == 0 for offset in offsets):
            raise Mismatch(f"thread-local {name} was built, another variable runs")

    def _learn_name(self, name: str, address: int) -> None:
        if self.names.setdefault(name, address) != address:
            raise Mismatch(f"{name} is at {address:#x} and at {self.names[name]:#x}")
        imported = self.running.plt.get(address)
        named = self.running.by_name.get(name, [])
        if self.running.chosen.get(address) in {n.address for n in named if n.kind in IFUNC_KINDS}:
            return  # called through the entry that its resolver has filled
        known = {n.address for n in named if n.kind not in IFUNC_KINDS}
        if (imported is not None and imported != name) or (imported is None and named and address not in known):
            raise Mismatch(f"{name} was built, {imported or hex(address)} runs")

    def learn_section(self, index: int, address: int) -> None:
        """Note where a section is; a second place, or other names there, is a mismatch."""
        known = self.sections.setdefault(index, address)
        if known != address:
            raise Mismatch(f"{self.object.sections[index].name} is at {address:#x} and at {known:#x}")
        for symbol in self.object.variables.get(index, []):
            same = [n for n in self._named(symbol.name, local=symbol.local) if n.kind == symbol.kind]
            if same and not any(n.address == address + symbol.value for n in same):
                raise Mismatch(f"{symbol.name} is not at {address + symbol.value:#x}")
            sizes = {n.size for n in same if n.address == address + symbol.value}
            if sizes and symbol.size not in sizes:
                raise Mismatch(f"{symbol.name} has {symbol.size} bytes as built, and {min(sizes)} where it runs")
        for function in self.object.functions_in(index):
            names = self._named(function.name, local=function.local)
            if names and not any(n.address == address + function.start for n in names):
                raise Mismatch(f"{function.name} is not at {address + function.start:#x}")

    def _named(self, name: str, *, local: bool) -> list[Named]:
        """Return the symbols that run by a name; where a local one is meant, of this source file if it has any."""
        found = self.running.named(name, local=local)
        return [n for n in found if local and n.file == self.object.source] or found

    def _check_string(self, section: Section, place: Place, value: int) -> None:
        mine = section.string(place.element)
        theirs = self.running.string(value - place.offset + place.element, max(section.entsize, 1))
        if theirs != mine:
            raise Mismatch(f"string {mine[:60]!r} was built, {(theirs or b'')[:60]!r} runs")

    def _match_tables(self, index: int, ours: Body, theirs: Body, function: Function) -> None:
        """Compare constants that code refers to: bytes, and jump tables entry by entry."""
        section, base = self.object.sections[index], self.sections[index]
        data = self.running.read(base, section.size)
        if data is None:
            raise Mismatch(f"{section.name} is not mapped at {base:#x}")
        fields = {at for r in section.relocations for at in range(r.offset, r.offset + reloc.width(r.type))}
        for at, (mine, running) in enumerate(zip(section.data, data, strict=True)):
            if at not in fields and mine != running:
                raise Mismatch(f"constant data of {section.name} differs at +{at:#x}")
        starts = self._table_starts(index, function)
        for item in section.relocations:
            if item.type != reloc.R_PC32 or item.symbol.section != function.section:
                continue
            start = max((s for s in starts if s <= item.offset), default=0)
            label = item.symbol.value + item.addend - (item.offset - start)
            value = int.from_bytes(data[item.offset : item.offset + 4], "little", signed=True)
            if ours.index_of(label) != theirs.index_of(base + start + value):
                raise Mismatch(f"jump table {section.name} differs at +{item.offset:#x}")

    def _table_starts(self, index: int, function: Function) -> list[int]:
        found = set()
        for step in self.object.decoded(function).steps:
            for item in step.relocations:
                place = place_of(item, step.instruction.next_ip - item.offset)
                if place.section == index:
                    found.add(place.offset)
        return sorted(found)
