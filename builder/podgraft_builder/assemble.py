"""Put patch.o together: the changed functions, what only they need, and references for everything else."""

from dataclasses import dataclass, field

from iced_x86 import Decoder

from podgraft_builder import reloc
from podgraft_builder.compare import Comparison
from podgraft_builder.frames import frames_of
from podgraft_builder.hooks import HookFunction
from podgraft_builder.objects import SHF_ALLOC, SHF_TLS, WEAK, Function, Place, Relocation, Section
from podgraft_builder.references import References
from podgraft_builder.writer import OutRelocation, OutSection, OutSymbol, write_object
from podgraft_bundle.errors import Reason, Refusal

_KEEP_FLAGS = 0x7  # write, alloc, exec: merging and groups end here
_FUNC, _NOTYPE = 2, 0


@dataclass
class Assembly:
    """The patch object as it grows. Every section that is included is looked at for what it refers to."""

    comparisons: dict[str, Comparison]
    references: References
    hooks: list[HookFunction] = field(default_factory=list)
    sections: list[OutSection] = field(default_factory=list)
    symbols: dict[tuple[str, Function], OutSymbol] = field(default_factory=dict)
    _included: dict[tuple[str, int], int] = field(default_factory=dict)
    _pending: list[tuple[str, int]] = field(default_factory=list)
    _strings: dict[bytes, int] = field(default_factory=dict)
    _strings_section: int | None = None

    def run(self) -> bytes:
        """Include all changed functions and what they need; return the bytes of patch.o. Raises Refusal."""
        names = [c.name for comparison in self.comparisons.values() for c in comparison.changed.values()]
        self.references.taken.update(names)
        for label, comparison in sorted(self.comparisons.items()):
            for _, unit in sorted(comparison.changed.items()):
                for function in (unit.new, *unit.new_parts):
                    self._include(label, function.section)
        for hook in self.hooks:
            self._include(hook.label, hook.function.section)
        while self._pending:
            label, index = self._pending.pop(0)
            self._relocate(label, index)
        self._add_frames()
        undefined = [OutSymbol(name, _NOTYPE, None, 0, 0, local=False) for name in self.references.made]
        return write_object(self.sections, [*self.symbols.values(), *undefined])

    def symbol_of(self, label: str, function: Function) -> str:
        """Return the name of a function in patch.o."""
        return self.symbols[label, function].name

    def _include(self, label: str, index: int) -> int:
        """Take a section of a new object into the patch, once; return its output number."""
        key = (label, index)
        if key not in self._included:
            comparison = self.comparisons[label]
            section = comparison.new.sections[index]
            self._check(comparison, section)
            self._check_is_new(label, _new_names(comparison, index))
            out = OutSection(section.name, section.flags & _KEEP_FLAGS, max(section.align, 1), bytearray(section.data))
            if section.kind == "SHT_NOBITS":
                out.nobits = section.size
            self._included[key] = len(self.sections)
            self.sections.append(out)
            self._pending.append(key)
            for function in comparison.new.functions_in(index):
                self._define(label, function, self._included[key])
        return self._included[key]

    def _check(self, comparison: Comparison, section: Section) -> None:
        """A section is taken as a whole; it must hold nothing that exists already."""
        if section.flags & SHF_TLS:
            raise Refusal(Reason.NEW_TLS, f"{comparison.new.label}: {section.name}")
        functions = comparison.new.functions_in(section.index)
        if section.executable and len({f.start for f in functions}) != 1:
            raise Refusal(
                Reason.UNSUPPORTED_CHANGE,
                f"{comparison.new.label}: {section.name} holds {len(functions)} functions",
                "functions with a section attribute of their own cannot be told apart",
            )
        for item in comparison.new.variables.get(section.index, []):
            if not section.constant and item in comparison.old_of:
                raise Refusal(
                    Reason.UNSUPPORTED_CHANGE,
                    f"{comparison.new.label}: {section.name} holds new data together with {item.name}",
                )

    def _check_is_new(self, label: str, names: list[str]) -> None:
        """What moves from one file to another exists already: a second copy would live beside it."""
        for name in names:
            if self._runs(name):
                raise Refusal(
                    Reason.MOVED_BETWEEN_FILES,
                    f"{name} is new in {label}, but the running binary has it already, from another file",
                )

    def _define(self, label: str, function: Function, section: int) -> None:
        local = ".cold" in function.name
        used = {symbol.name for symbol in self.symbols.values()} | set(self.references.made)
        name = function.name
        if name in used:
            name = f"{function.name}.{self.comparisons[label].new.source}"
        if name in used:
            name = f"{function.name}.{label}"
        self.references.taken.add(name)
        self.symbols[label, function] = OutSymbol(name, _FUNC, section, function.start, function.size, local=local)

    def _relocate(self, label: str, index: int) -> None:
        which = self.comparisons[label].new
        out = self.sections[self._included[label, index]]
        calls = which.branch_fields(index)
        for item, place in which.places_of(index):
            symbol, addend = self._resolve(label, which.sections[index], item, place, call=item.offset in calls)
            kind = item.type
            if isinstance(symbol, str) and kind == reloc.R_PC32 and item.offset in calls:
                kind = reloc.R_PLT32  # lets the engine go through a thunk where the target is far away
            elif kind in reloc.GOT:
                kind = reloc.R_GOTPCREL  # what may be relaxed needs not be, and pyelftools does not know all of them
            if kind not in reloc.ALLOWED:
                raise Refusal(
                    Reason.UNSUPPORTED_RELOCATION, f"{label}: {reloc.name(kind)} for {item.symbol.name or 'a section'}"
                )
            out.relocations.append(OutRelocation(item.offset, kind, symbol, addend))
        if which.sections[index].executable:
            self._own_entries(label, index, out)

    def _own_entries(self, label: str, index: int, out: OutSection) -> None:
        """A function that takes its own address does so without a relocation: let it take the original's."""
        comparison = self.comparisons[label]
        for function in comparison.new.functions_in(index):
            unit = comparison.changed.get(function.name)
            if unit is None:
                continue
            fields = {r.offset for r in comparison.new.relocations_of(function)}
            decoder = Decoder(64, comparison.new.body(function), ip=function.start)
            for instruction in decoder:
                if not instruction.is_ip_rel_memory_operand or instruction.memory_displacement != function.start:
                    continue
                at = instruction.ip + decoder.get_constant_offsets(instruction).displacement_offset
                if at not in fields:
                    symbol = self.references.function(label, unit.old, original=True)
                    out.relocations.append(OutRelocation(at, reloc.R_PC32, symbol, at - instruction.next_ip))

    def _resolve(
        self, label: str, source: Section, item: Relocation, place: Place, *, call: bool
    ) -> tuple[str | int, int]:
        """Return the symbol (or output section) and addend that mean the same in patch.o."""
        comparison = self.comparisons[label]
        bias = place.offset - (item.addend if place.section is None else _raw_offset(item))
        if place.section is None:
            return self._resolve_name(label, item, call=call)
        target = comparison.new.sections.get(place.section)
        if target is None:
            raise Refusal(Reason.UNSUPPORTED_CHANGE, f"{label}: {source.name} refers to a section without memory")
        if target.executable:
            return self._resolve_code(label, source, item, place, bias, call=call)
        if target.strings:
            section, offset = self._string(target, place)
            return section, offset - bias
        variable = comparison.new.variable_at(place)
        if variable is not None:
            old = comparison.continued(variable)
            if old is not None:
                named = self.references.preempted(label, variable.name, item.type, call=False)
                symbol = named or self.references.variable(label, old)
                return symbol, place.offset - variable.value - bias
            if variable.bind in WEAK and self._runs(variable.name):
                # An inline variable of C++ that another object brought into the running binary.
                symbol = self.references.external(label, variable.name, reloc.R_64, call=False)
                return symbol, place.offset - variable.value - bias
        elif not (target.constant or (source.name.startswith(".gcc_except_table") and _only_pointers(target))):
            raise Refusal(Reason.UNSUPPORTED_CHANGE, f"{label}: {source.name} refers to unnamed data in {target.name}")
        return self._include(label, target.index), place.offset - bias

    def _runs(self, name: str) -> bool:
        return any(known.shared for known in self.references.running.by_name.get(name, []))

    def _string(self, target: Section, place: Place) -> tuple[int, int]:
        """Copy a string into the patch, once; all strings share one section of their alignment."""
        if self._strings_section is None:
            self._strings_section = len(self.sections)
            self.sections.append(OutSection(".rodata.str", SHF_ALLOC, 16, bytearray()))
        text = target.string(place.element) + bytes(max(target.entsize, 1))
        data = self.sections[self._strings_section].data
        if text not in self._strings:
            data.extend(bytes(-len(data) % max(target.align, 1)))
            self._strings[text] = len(data)
            data.extend(text)
        return self._strings_section, self._strings[text] + place.offset - place.element

    def _resolve_code(
        self, label: str, source: Section, item: Relocation, place: Place, bias: int, *, call: bool
    ) -> tuple[str | int, int]:
        comparison = self.comparisons[label]
        function = comparison.new.function_at(place.section or 0, place.offset)
        if function is None:
            raise Refusal(
                Reason.HAND_WRITTEN_ASM, f"{label}: {source.name} refers to code without a function around it"
            )
        parent = comparison.new.parent_of(function)
        entry = place.offset == function.start and function.name == parent
        # Jump tables and .eh_frame speak of places inside a function, also where that is its first byte.
        inside = not entry or call or (not source.executable and item.type == reloc.R_PC32)
        unit = comparison.changed.get(parent)
        if not inside and function.weak and parent in comparison.new_functions and self._runs(function.name):
            # Its address is what the program knows it by, as std::any does.
            return self.references.external(label, function.name, reloc.R_64, call=False), -bias
        if entry and not item.symbol.local and parent not in comparison.new_functions:
            named = self.references.preempted(label, item.symbol.name, item.type, call=call)
            if named is not None:
                return named, -bias
        if (unit is not None and inside) or parent in comparison.new_functions:
            return self._include(label, function.section), place.offset - bias
        if unit is not None:
            return self.references.function(label, unit.old, original=True), -bias
        if not entry:
            raise Refusal(Reason.UNSUPPORTED_CHANGE, f"{label}: {source.name} jumps into the middle of {function.name}")
        return self.references.function(label, comparison.old.functions[function.name], call=call), -bias

    def _resolve_name(self, label: str, item: Relocation, *, call: bool) -> tuple[str | int, int]:
        """A name that another object defines, in this patch or in the running program."""
        name = item.symbol.name
        for other, comparison in sorted(self.comparisons.items()):
            function = comparison.new.functions.get(name)
            if function is not None and not function.local:
                unit = comparison.changed.get(function.name)
                is_new = function.name in comparison.new_functions
                named = None if is_new else self.references.preempted(label, name, item.type, call=call)
                if named is not None:
                    return named, item.addend
                if is_new or (unit is not None and call):
                    return self._include(other, function.section), function.start + item.addend
                if unit is not None:
                    return self.references.function(other, unit.old, original=True), item.addend
                if comparison.old.functions[function.name].local:  # it runs under a name that nobody else knew
                    return self.references.function(other, comparison.old.functions[function.name]), item.addend
            for symbol in comparison.new_variables:
                if symbol.name == name and not symbol.local:
                    return self._include(other, symbol.section or 0), symbol.value + item.addend
        if item.symbol.special == "SHN_ABS":
            raise Refusal(Reason.UNSUPPORTED_CHANGE, f"{label}: refers to the absolute symbol {name}")
        return self.references.external(label, name, item.type, call=call), item.addend

    def _add_frames(self) -> None:
        """Collect the unwind information of all included code in one .eh_frame."""
        out = OutSection(".eh_frame", SHF_ALLOC, 8, bytearray())
        found: list[tuple[str, int, Relocation, Place]] = []
        for label, comparison in sorted(self.comparisons.items()):
            wanted = {index for (where, index) in self._included if where == label}
            for data, relocations in frames_of(comparison.new, wanted):
                start = len(out.data)
                out.data.extend(data)
                found += [(label, start, item, place) for item, place in relocations]
        if not out.data:
            return
        self.sections.append(out)
        frame = Section(0, ".eh_frame", "SHT_PROGBITS", SHF_ALLOC, 0, 8, len(out.data), bytes(out.data), ())
        for label, start, item, place in found:
            symbol, addend = self._resolve(label, frame, item, place, call=False)
            out.relocations.append(OutRelocation(start + item.offset, item.type, symbol, addend))
        while self._pending:  # exception tables, and what they refer to
            self._relocate(*self._pending.pop(0))


def _only_pointers(section: Section) -> bool:
    """Say whether a section is what stands between a table of handlers and its types: nobody writes to it.

    clang puts it there for all types, GCC for those that one file alone has (dw2_force_const_mem).
    """
    fields = [r.offset for r in section.relocations if r.type == reloc.R_64]
    return fields == list(range(0, section.size, 8))


def _raw_offset(item: Relocation) -> int:
    return item.addend if item.symbol.kind == "STT_SECTION" else item.symbol.value + item.addend


def _new_names(comparison: Comparison, index: int) -> list[str]:
    """Return the global names of a section that the old object did not have."""
    functions = [f.name for f in comparison.new.functions_in(index) if not f.local and not f.weak]
    variables = [s.name for s in comparison.new.variables.get(index, []) if s.bind == "STB_GLOBAL"]
    old = {s.name for s in comparison.old.symbols if s.section is not None}
    return [name for name in (*functions, *variables) if name not in old]
