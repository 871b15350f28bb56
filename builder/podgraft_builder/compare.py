"""Compare an object of the old build with its successor, by meaning: which functions and data differ, and why."""

from dataclasses import dataclass, field

from podgraft_builder import reloc
from podgraft_builder.frames import exception_table
from podgraft_builder.labels import leads_into
from podgraft_builder.loose import Piece, loose_code, numbers, unsized_data
from podgraft_builder.objects import Function, ObjectFile, Place, Relocation, Section, base_name, place_of
from podgraft_builder.statics import check_counted, correlate, may_continue, same_owner
from podgraft_builder.symtab import Symbol
from podgraft_bundle.errors import Reason, Refusal

CLASS_TABLES = ("_ZTV", "_ZTI", "_ZTS", "_ZTT")  # vtable, type information, its name, VTT (Itanium C++ ABI, 5.1.4)
GUARD = "_ZGV"  # guard variable (5.1.5.2)
START_STOP = (".init_array", ".fini_array", ".preinit_array", ".ctors", ".dtors", ".init", ".fini")


@dataclass(frozen=True)
class Changed:
    """One function with its cold parts, in both builds, and the first difference found."""

    name: str
    old: Function
    new: Function
    old_parts: tuple[Function, ...]
    new_parts: tuple[Function, ...]
    why: str


@dataclass(frozen=True)
class ChangedData:
    """Existing data that is not as it was; kept: new code may use the variable with the value that it has."""

    reason: Reason
    detail: str
    kept: bool


@dataclass
class Comparison:
    """Two objects of one source file.

    `old_of` maps a data symbol of the new object to the one of the old that it continues.
    """

    old: ObjectFile
    new: ObjectFile
    changed: dict[str, Changed] = field(default_factory=dict)
    old_of: dict[Symbol, Symbol] = field(default_factory=dict)
    data: list[ChangedData] = field(default_factory=list)
    _same: dict[tuple[int, int, int, int], bool] = field(default_factory=dict)

    def run(self) -> "Comparison":
        """Find the changed functions, then check that existing data is as it was. Raises Refusal."""
        if self.new.lto or self.old.lto:
            raise Refusal(Reason.LTO_OBJECT, f"{self.new.label} holds no machine code but GCC's own language")
        for name, new in self._parents(self.new).items():
            old = self._parents(self.old).get(name)
            if old is not None:
                self._compare_unit(name, old, new)
        check_counted(self.old, self.new)
        correlate(self.old, self.new, self.old_of)
        self._compare_start_sections()
        self._compare_loose_code()
        self._compare_data()
        return self

    @property
    def new_functions(self) -> dict[str, Function]:
        """Return the functions that only the new object has."""
        known = self._parents(self.old)
        return {name: item for name, item in self._parents(self.new).items() if name not in known}

    @property
    def new_variables(self) -> set[Symbol]:
        """Return the data symbols that only the new object has; pointers to type information hold no value."""
        return {
            item
            for items in self.new.variables.values()
            for item in items
            if item not in self.old_of
            and not self.new.sections[item.section or 0].constant
            and not item.name.startswith("DW.ref.")
        }

    def continued(self, new: Symbol) -> Symbol | None:
        """Return the old variable that a new one continues; a local constant only if its content is the same."""
        old = self.old_of.get(new)
        if old is None:
            return None
        a, b = self.old.sections[old.section or 0], self.new.sections[new.section or 0]
        if a.constant and b.constant and new.local:
            same = self._same_content(a, b, old.value, old.size, new.value, new.size)
            same = same and alignment(b, new) <= alignment(a, old)
            return old if same and not leads_into(self.new, new, set(self.changed)) else None
        return old

    def is_there(self, old: Symbol) -> bool:
        """Say whether the new object has a constant of that name, numbers aside, with the same content."""
        a = self.old.sections[old.section or 0]
        return any(
            self._same_content(a, self.new.sections[index], old.value, old.size, new.value, new.size)
            for index, items in self.new.variables.items()
            for new in items
            if base_name(new.name) == base_name(old.name)
        )

    def parts(self, which: ObjectFile, name: str) -> tuple[Function, ...]:
        """Return the cold parts of a function; they have the name of its definition, which may be any alias."""
        names = which.functions[name].aliases
        return tuple(
            item
            for part, item in sorted(which.functions.items())
            if part.partition(".cold")[0] in names and ".cold" in part and part == item.name
        )

    def _parents(self, which: ObjectFile) -> dict[str, Function]:
        return {f.name: f for f in which.functions.values() if ".cold" not in f.name}

    def _compare_unit(self, name: str, old: Function, new: Function) -> None:
        old_parts, new_parts = self.parts(self.old, name), self.parts(self.new, name)
        why = self.difference(old, new)
        if why is None and len(old_parts) != len(new_parts):
            why = "cold part came or went"
        pairs = [(old, new), *zip(old_parts, new_parts, strict=False)]
        for a, b in pairs[1:]:
            why = why or self.difference(a, b)
        why = why or next((w for a, b in pairs if (w := self._table_difference(a, b))), None)
        if why is not None:
            self.changed[name] = Changed(name, old, new, old_parts, new_parts, why)

    def _table_difference(self, old: Function, new: Function) -> str | None:
        """What is caught, and where it goes on, stands in a table beside the code."""
        x, y = exception_table(self.old, old), exception_table(self.new, new)
        if x is None or y is None:
            return None if x is y else "exception table came or went"
        a, b = self.old.sections[x[0]], self.new.sections[y[0]]
        return None if self._same_content(a, b, x[1], x[2], y[1], y[2]) else "exception table"

    def difference(self, old: Function, new: Function) -> str | None:
        """Say how two functions differ, None when they mean the same."""
        if old.size != new.size:
            return f"size {old.size} -> {new.size}"
        a, b = self.old.relocations_of(old), self.new.relocations_of(new)
        if _masked(self.old, old, a) != _masked(self.new, new, b):
            return "instructions"
        if [(r.offset - old.start, r.type) for r in a] != [(r.offset - new.start, r.type) for r in b]:
            return "relocations"
        biases = self.old.decoded(old).biases if a else {}
        for left, right in zip(a, b, strict=True):
            if not self._same_relocation(left, right, biases.get(left.offset, 0), _bias_at(self.new, new, right)):
                return f"reference at +{left.offset - old.start:#x}: {_label(left)} -> {_label(right)}"
        return None

    def _same_relocation(self, left: Relocation, right: Relocation, bias: int, new_bias: int) -> bool:
        return self.same_place(place_of(left, bias), place_of(right, new_bias))

    def same_place(self, old: Place, new: Place) -> bool:
        """Say whether a reference of the old object and one of the new mean the same."""
        if old.section is None or new.section is None:
            extra = new.offset - new.symbol.value * (new.section is not None)
            before = old.offset - old.symbol.value * (old.section is not None)
            return old.symbol.name == new.symbol.name != "" and extra == before
        a, b = self.old.sections.get(old.section), self.new.sections.get(new.section)
        if a is None or b is None:
            return False
        if a.executable or b.executable:
            return a.executable and b.executable and self._same_code_place(old, new)
        if a.strings and b.strings:
            same = a.string(old.element) == b.string(new.element)
            return same and old.offset - old.element == new.offset - new.element
        if a.pooled and b.pooled:
            (x, mine), (y, theirs) = a.element(old.element), b.element(new.element)
            return mine == theirs and old.offset - x == new.offset - y
        return self._same_data_place(a, b, old, new)

    def _same_code_place(self, old: Place, new: Place) -> bool:
        f = self.old.function_at(old.section or 0, old.offset)
        g = self.new.function_at(new.section or 0, new.offset)
        if f is None or g is None:
            return f is g and old.offset == new.offset
        return f.name == g.name and old.offset - f.start == new.offset - g.start

    def _same_data_place(self, a: Section, b: Section, old: Place, new: Place) -> bool:
        x, y = self.old.variable_at(old), self.new.variable_at(new)
        if x is None or y is None:
            return x is y and old.offset == new.offset and self._same_content(a, b, 0, a.size, 0, b.size)
        if not may_continue(x, y) or old.offset - x.value != new.offset - y.value:
            return False
        if a.constant and b.constant and x.local:
            same = self._same_content(a, b, x.value, x.size, y.value, y.size)
            if same:
                self.old_of.setdefault(y, x)
            return same
        if x.local:
            return same_owner(self.old, x, self.new, y) and self.old_of.setdefault(y, x) == x
        return True

    def _same_content(  # noqa: PLR0917 (two pieces of data)
        self, a: Section, b: Section, start: int, size: int, new_start: int, new_size: int
    ) -> bool:
        """Compare two pieces of data with what they point at; a piece that points at itself is equal to itself."""
        key = (a.index, start, b.index, new_start)
        if key not in self._same:
            self._same[key] = True
            self._same[key] = size == new_size and self._content_equal(a, b, start, new_start, size)
        return self._same[key]

    def _content_equal(self, a: Section, b: Section, start: int, new_start: int, size: int) -> bool:
        left = [r for r in a.relocations if start <= r.offset < start + size]
        right = [r for r in b.relocations if new_start <= r.offset < new_start + size]
        if _mask(a.data[start : start + size], left, start) != _mask(
            b.data[new_start : new_start + size], right, new_start
        ):
            return False
        if [(r.offset - start, r.type) for r in left] != [(r.offset - new_start, r.type) for r in right]:
            return False
        return all(self._same_relocation(x, y, 0, 0) for x, y in zip(left, right, strict=True))

    def same_section(self, name: str) -> bool:
        """Say whether the sections of a name are the same in both objects."""
        a = [s for s in self.old.sections.values() if s.name == name]
        b = [s for s in self.new.sections.values() if s.name == name]
        return len(a) == len(b) and all(
            self._same_content(x, y, 0, x.size, 0, y.size) for x, y in zip(a, b, strict=True)
        )

    def _compare_start_sections(self) -> None:
        """Code that runs once at start or end has run already: it must not change."""
        for name in START_STOP:
            a = [s for s in self.old.sections.values() if s.name.startswith(name)]
            b = [s for s in self.new.sections.values() if s.name.startswith(name)]
            same = len(a) == len(b) and all(
                self._same_content(x, y, 0, x.size, 0, y.size) for x, y in zip(a, b, strict=True)
            )
            if not same:
                raise Refusal(
                    Reason.CHANGED_CONSTRUCTOR,
                    f"{self.new.label}: {name} changes: static constructors have run already",
                )

    def _compare_loose_code(self) -> None:
        """Code that belongs to no function is assembler, and so is data without a size; both must stay as they are."""
        before: dict[str, list[Section]] = {}
        for section in self.old.sections.values():
            before.setdefault(section.name, []).append(section)
        for section in self.new.sections.values():
            pieces = loose_code(self.new, section) if section.executable else []
            if pieces and not any(self._same_loose_code(old, section, pieces) for old in before.get(section.name, ())):
                raise Refusal(Reason.HAND_WRITTEN_ASM, f"{self.new.label}: {section.name} changes outside functions")
        for name, symbol in unsized_data(self.old).items():
            if not self.same_section(name):
                detail = f"{self.new.label}: {name}, which holds {symbol}, changes"
                self.data.append(ChangedData(Reason.CHANGED_DATA, detail, kept=False))

        before_numbers, after = numbers(self.old), numbers(self.new)
        for name in sorted(before_numbers.keys() & after.keys()):
            if before_numbers[name] != after[name]:
                detail = f"{self.new.label}: {name}: {before_numbers[name]:#x} -> {after[name]:#x}"
                self.data.append(ChangedData(Reason.CHANGED_DATA, detail, kept=False))

    def _same_loose_code(self, old: Section, new: Section, pieces: list[Piece]) -> bool:
        known = loose_code(self.old, old) if old.executable else []
        return [end - start for start, end in known] == [end - start for start, end in pieces] and all(
            self._content_equal(old, new, a[0], b[0], b[1] - b[0]) for a, b in zip(known, pieces, strict=True)
        )

    def _compare_data(self) -> None:
        """Existing variables keep their size and initial value; constants may change where only new code sees them."""
        for new, old in self.old_of.items():
            a, b = self.old.sections[old.section or 0], self.new.sections[new.section or 0]
            table = new.name.startswith(CLASS_TABLES)
            if a.constant and b.constant and new.local and not table:
                continue
            if not self._same_content(a, b, old.value, old.size, new.value, new.size):
                size = "" if old.size == new.size else f", size {old.size} -> {new.size}"
                reason = Reason.CHANGED_VTABLE if table else Reason.CHANGED_DATA
                detail = f"{self.new.label}: initial value of {old.name} ({a.name}) changes{size}"
                kept = old.size == new.size and not (a.constant or b.constant)
                self.data.append(ChangedData(reason, detail, kept))
            if alignment(b, new) > alignment(a, old):
                detail = f"{self.new.label}: alignment of {old.name}: {alignment(a, old)} -> {alignment(b, new)}"
                self.data.append(ChangedData(Reason.CHANGED_LAYOUT, detail, kept=False))
        for new_items in self.new.variables.values():
            for item in new_items:
                if item.kind == "STT_TLS" and item not in self.old_of:
                    raise Refusal(Reason.NEW_TLS, f"{self.new.label}: {item.name}")
        self._compare_guards()
        self._compare_names()

    def _compare_guards(self) -> None:
        """A variable whose guard comes would be made a second time (Itanium C++ ABI, 3.3.3 and 5.1.5.2)."""
        known = {old.name for old in self.old_of.values()}
        for guard in self.new_variables:
            name = guard.name.replace(GUARD, "_Z", 1)
            if guard.name.startswith(GUARD) and name in known:
                detail = f"{self.new.label}: {name} is now made by the first call, which would undo its value"
                self.data.append(ChangedData(Reason.CHANGED_DATA, detail, kept=False))

    def _compare_names(self) -> None:
        """A variable that goes while another of its size comes may be renamed: its value would be lost."""
        common = {symbol.name for symbol in self.old.symbols if symbol.special == "SHN_COMMON"}
        for item in self.new_variables:
            if item.local and item.name in common:
                raise Refusal(
                    Reason.UNSUPPORTED_CHANGE,
                    f"{self.new.label}: {item.name}, a common variable, becomes static: it would lose its value",
                    "leave the declaration as it is",
                )
        kept = set(self.old_of.values())
        for items in self.old.variables.values():
            for old in items:
                section = self.old.sections[old.section or 0]
                twin = next((new for new in self.new_variables if new.size == old.size), None)
                if old not in kept and not section.constant and twin is not None:
                    raise Refusal(
                        Reason.UNSUPPORTED_CHANGE,
                        f"{self.new.label}: variable {old.name} goes and {twin.name} of the same size comes:"
                        " a renamed variable would lose its value",
                        "keep the name of existing variables",
                    )


def alignment(section: Section, symbol: Symbol) -> int:
    """Return what the object promises of the address of a variable, in bytes."""
    return min(max(section.align, 1), symbol.value & -symbol.value or max(section.align, 1))


def _masked(which: ObjectFile, function: Function, items: list[Relocation]) -> bytes:
    return _mask(which.body(function), items, function.start)


def _mask(data: bytes, items: list[Relocation], start: int) -> bytes:
    """Blank the fields that relocations fill."""
    out = bytearray(data)
    for item in items:
        size, at = reloc.width(item.type), item.offset - start
        out[at : at + size] = bytes(size)
    return bytes(out)


def _bias_at(which: ObjectFile, function: Function, item: Relocation) -> int:
    return which.decoded(function).biases.get(item.offset, 0)


def _label(item: Relocation) -> str:
    return item.symbol.name or "section" + f"{item.addend:+#x}"
