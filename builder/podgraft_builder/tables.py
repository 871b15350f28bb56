"""Prove that tables hold what was built: constants and first values, and whatever each of their entries leads to.

Equal instructions do not make two binaries one: a function that picks a string, or a function, from a table has the
same code whatever the table holds.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

from podgraft_builder import reloc
from podgraft_builder.code import decode
from podgraft_builder.instructions import Mismatch
from podgraft_builder.match import Proof
from podgraft_builder.objects import (
    IFUNC_KINDS,
    SHF_GROUP,
    SHF_TLS,
    WEAK,
    Function,
    Place,
    Relocation,
    Section,
    place_of,
)
from podgraft_builder.running import IRELATIVE, RELATIVE, SYMBOLIC
from podgraft_bundle.errors import Reason, Refusal

_CHUNK = 1 << 20
# __DATE__ and __TIME__ (C11 6.10.8.1) as the builds here have them (SOURCE_DATE_EPOCH=0), and as others may.
_OUR_TIME = re.compile(rb"Jan  1 1970|00:00:00")
_TIME = re.compile(rb"[A-Z][a-z]{2} [ 1-3]\d \d{4}|\d\d:\d\d:\d\d")


def check_tables(proof: Proof) -> None:
    """Check the data that proven functions lead to. Raises Refusal(RUNNING_BINARY_DIFFERS).

    What is learnt on the way is forgotten: the addresses that a patch uses are those that code refers to.
    """
    try:
        _Tables(proof.copy()).run()
    except Mismatch as error:
        raise Refusal(Reason.RUNNING_BINARY_DIFFERS, f"{proof.object.label}: {error}") from error


@dataclass
class _Tables:
    proof: Proof
    names: dict[str, int] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.object, self.running = self.proof.object, self.proof.running

    def run(self) -> None:
        """Check sections until no entry leads to a new one."""
        self._learn_slots()
        while open_ := sorted(self.proof.sections.keys() - self.done):
            for index in open_:
                self.done.add(index)
                self._match(self.object.sections[index], self.proof.sections[index])

    def _learn_slots(self) -> None:
        """Find what code of a library reaches through the GOT, though the object itself defines it."""
        for symbol in self.object.symbols:
            slot = self.proof.slots.get(symbol.name)
            section = self.object.sections.get(symbol.section or 0)
            if slot is None or section is None or section.executable or section.flags & SHF_TLS or symbol.bind in WEAK:
                continue
            name, _, value = self.running.pointer(slot)
            found = {n.address for n in self.running.by_name.get(name, []) if n.shared} if name else {value}
            if len(found) == 1:
                self.proof.learn_section(section.index, found.pop() - symbol.value)

    def _match(self, section: Section, base: int) -> None:
        if section.executable or section.strings or section.pooled or section.flags & SHF_TLS or not section.size:
            return
        variables = self.object.variables.get(section.index, [])
        # Another file's definition may have won, which need not be the same where it is no copy of one inline thing.
        if any(v.bind in WEAK for v in variables) and not (section.constant and section.flags & SHF_GROUP):
            return
        if variables:
            self._match_bytes(section, base)
        for item in section.relocations:
            if item.type == reloc.R_64 and (variables or self._is_reached(section.index, item.offset)):
                try:
                    self._match_entry(item, base + item.offset)
                except Mismatch as error:
                    raise Mismatch(f"{section.name}+{item.offset:#x}: {error}") from error

    def _match_bytes(self, section: Section, base: int) -> None:
        """Compare what needs no relocation, in pieces: an array of zeros may be large."""
        fields = {at for r in section.relocations for at in range(r.offset, r.offset + reloc.width(r.type))}
        for start in range(0, section.size, _CHUNK):
            size = min(_CHUNK, section.size - start)
            theirs = self.running.read(base + start, size)
            if theirs is None:
                raise Mismatch(f"{section.name} is not mapped at {base:#x}")
            mine = bytearray(section.data[start : start + size].ljust(size, b"\0"))
            for at in fields:
                if start <= at < start + size:
                    mine[at - start] = theirs[at - start]
            if not _same(bytes(mine), theirs):
                at = next(at for at in range(size) if mine[at] != theirs[at])
                raise Mismatch(f"data of {section.name} differs at +{start + at:#x}")

    def _is_reached(self, index: int, offset: int) -> bool:
        """Say whether an entry belongs to a constant without a name that proven code refers to.

        The constants of all functions lie in one section, also of those that the linker dropped.
        """
        starts = self._starts[index]
        start = max((at for at in starts if at <= offset), default=None)
        return start is not None and starts[start]

    @cached_property
    def _starts(self) -> dict[int, dict[int, bool]]:
        """Section -> place in it that some function refers to -> does a proven one?"""
        found: dict[int, dict[int, bool]] = defaultdict(dict)
        for function in dict.fromkeys(self.object.functions.values()):
            for item, place in self.object.references_of(function):
                if place.section is not None and item.type not in reloc.GOT:
                    proven = function in self.proof.functions
                    found[place.section][place.offset] = proven or found[place.section].get(place.offset, False)
        return found

    def _match_entry(self, item: Relocation, address: int) -> None:
        name, kind, value = self.running.pointer(address)
        place = place_of(item, 0)
        if item.symbol.special == "SHN_ABS" or self._is_ifunc(item, kind):
            return
        if kind not in SYMBOLIC | {RELATIVE}:
            raise Mismatch(f"{item.symbol.name} was built, a relocation of type {kind} is there")
        if name:
            self._match_symbolic(item, place, name, value)
        elif place.section is None:
            self._match_name(item.symbol.name, value - place.offset)
        else:
            self._match_place(item, place, value)

    def _is_ifunc(self, item: Relocation, kind: int) -> bool:
        """Say whether a resolver chooses what the entry is, so that the file does not tell."""
        if item.symbol.section is not None:
            return item.symbol.kind in IFUNC_KINDS
        return kind == IRELATIVE or any(n.kind in IFUNC_KINDS for n in self.running.by_name.get(item.symbol.name, []))

    def _match_symbolic(self, item: Relocation, place: Place, name: str, addend: int) -> None:
        if name in _meant(item.symbol.name) and addend == item.addend:
            return
        for symbol in self.object.symbols if place.section is not None else ():
            if symbol.name == name and (symbol.section, symbol.value + addend) == (place.section, place.offset):
                return
        raise Mismatch(f"{item.symbol.name or hex(place.offset)} was built, {name}+{addend:#x} runs")

    def _match_name(self, symbol: str, address: int) -> None:
        """Match what another file or library defines: by its PLT entry, or by the symbols that are known."""
        meant = _meant(symbol)
        imported = self.running.plt.get(address)
        if imported in meant:
            return
        known = {n.address for name in meant for n in self.running.by_name.get(name, []) if n.shared}
        first = self.names.setdefault(symbol, address)
        here = {} if self.running.partial else {n.name: n.shared for n in self.running.names_at.get(address, [])}
        other = not known and any(here.values()) and not meant & here.keys()
        if imported is not None or other or (known and address not in known) or first != address:
            raise Mismatch(f"{symbol} was built, {self._who(imported, address)} runs")

    def _who(self, imported: str | None, address: int) -> str:
        names = [n.name for n in self.running.names_at.get(address, []) if n.name]
        return imported or (names[0] if names else hex(address))

    def _match_place(self, item: Relocation, place: Place, value: int) -> None:
        section = self.object.sections.get(place.section or 0)
        if section is None:
            raise Mismatch(f"entry into section {place.section}")
        if section.executable:
            self._match_function(section, place, value)
        elif section.strings:
            start = place.element - place.offset
            self._match_string(section, place.element, value + start)
        elif section.pooled:
            self.proof.learn(item, place, value, [])
        elif (variable := self.object.variable_at(place)) is None:
            if not section.relocations:  # a string that is not merged (-O0), among others that lie elsewhere there
                self._match_string(section, place.offset, value)
        elif variable.bind in WEAK and not section.flags & SHF_GROUP:
            self._match_name(variable.name, value - place.offset + variable.value)
        else:
            self.proof.learn_section(section.index, value - place.offset)

    def _match_string(self, section: Section, offset: int, value: int) -> None:
        mine, theirs = section.string(offset), self.running.string(value, max(section.entsize, 1))
        if theirs is None or not _same(mine, theirs):
            raise Mismatch(f"string {mine[:60]!r} was built, {(theirs or b'')[:60]!r} runs")

    def _match_function(self, section: Section, place: Place, value: int) -> None:
        function = self.object.function_at(section.index, place.offset)
        if function is None:  # a label of hand-written code
            return
        if place.offset != function.start:
            self._match_label(function, place.offset, value)
        elif not function.weak:
            self.proof.learn_section(section.index, value - place.offset)
        else:
            known = {n.address for a in function.aliases for n in self.running.by_name.get(a, []) if n.shared}
            if known and value not in known:
                raise Mismatch(f"{function.name} was built, {self._who(self.running.plt.get(value), value)} runs")

    def _match_label(self, function: Function, offset: int, value: int) -> None:
        """Match a label, as of a jump table: distances may differ, because branches are short or long."""
        named = self.proof.functions.get(function)
        if named is None:
            return
        theirs = decode(self.running.read(named.address, named.size) or b"", named.address)
        if self.object.decoded(function).index_of(offset) != theirs.index_of(value):
            raise Mismatch(f"a jump into {function.name} leads elsewhere in the running binary")


def _meant(symbol: str) -> set[str]:
    """Return the names that a name may have become: without its version, and as --wrap of the linker makes it."""
    name = symbol.split("@", 1)[0]
    return {name, f"__wrap_{name}", name.removeprefix("__real_")}


def _same(mine: bytes, theirs: bytes) -> bool:
    """Compare two texts, but for the times of the builds."""
    if mine == theirs or len(mine) != len(theirs):
        return mine == theirs
    for time in _OUR_TIME.finditer(mine):
        start, end = time.span()
        if _TIME.fullmatch(theirs, start, end):
            theirs = theirs[:start] + mine[start:end] + theirs[end:]
    return mine == theirs
