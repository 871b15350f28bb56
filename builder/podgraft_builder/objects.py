"""A relocatable ELF object as the comparison sees it: sections, symbols, relocations, functions."""

import io
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from podgraft_builder import code, reloc
from podgraft_builder.debuginfo import DebugInfo, read_debug_info
from podgraft_builder.symtab import Symbol, read_symbols
from podgraft_bundle.errors import Reason, Refusal

SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_MERGE, SHF_STRINGS, SHF_GROUP, SHF_TLS = 1, 2, 4, 0x10, 0x20, 0x200, 0x400
IFUNC = "STT_GNU_IFUNC"
IFUNC_KINDS = frozenset({IFUNC, "STT_LOOS"})  # pyelftools knows the number 10 by either name
FUNCTION_KINDS = IFUNC_KINDS | {"STT_FUNC"}
WEAK = frozenset({"STB_WEAK", "STB_LOOS", "STB_GNU_UNIQUE"})
_DF_1_PIE = 0x08000000
_SUFFIX = re.compile(r"\.\d+$")


class Relocation(NamedTuple):
    """One relocation; type is the psABI number."""

    offset: int
    type: int
    symbol: Symbol
    addend: int


@dataclass(frozen=True)
class Section:
    """A section; data is empty for SHT_NOBITS, size is not."""

    index: int
    name: str
    kind: str
    flags: int
    entsize: int
    align: int
    size: int
    data: bytes
    relocations: tuple[Relocation, ...]

    @property
    def executable(self) -> bool:
        """Say whether it holds code."""
        return bool(self.flags & SHF_EXECINSTR)

    @property
    def strings(self) -> bool:
        """Say whether it holds mergeable strings."""
        return self.flags & (SHF_MERGE | SHF_STRINGS) == SHF_MERGE | SHF_STRINGS

    @property
    def pooled(self) -> bool:
        """Say whether it holds mergeable constants of one size; no linker merges those with relocations."""
        return self.flags & (SHF_MERGE | SHF_STRINGS) == SHF_MERGE and not self.relocations

    def element(self, offset: int) -> tuple[int, bytes]:
        """Return start and bytes of the mergeable constant at an offset; code may use a part of one."""
        size = max(self.entsize, 1)
        start = offset - offset % size
        return start, self.data[start : start + size]

    def string(self, offset: int) -> bytes:
        """Return the string at an offset without its end, whatever the width of its characters."""
        width, end = max(self.entsize, 1), offset
        while end < len(self.data) and any(self.data[end : end + width]):
            end += width
        return self.data[offset:end]

    @property
    def constant(self) -> bool:
        """Say whether the program never writes to it: read-only, or read-only after relocation."""
        return not self.flags & SHF_WRITE or self.name.startswith(".data.rel.ro")


@dataclass(frozen=True)
class Function:
    """A function: its first global name, or its local one, and where it lies.

    weak: the linker may have taken another object's copy.
    """

    name: str
    section: int
    start: int
    size: int
    local: bool
    aliases: tuple[str, ...]
    kind: str = "STT_FUNC"
    weak: bool = False

    @property
    def plain(self) -> set[str]:
        """Return its names without versions."""
        return {name.partition("@")[0] for name in self.aliases}


class Place(NamedTuple):
    """Where a reference points: (section, offset) in the object, or an undefined name and an offset from it.

    `element` is the offset that the symbol itself has: an addend may point before or behind what is meant.
    """

    symbol: Symbol
    section: int | None
    offset: int
    element: int


class ObjectFile:
    """One parsed object."""

    def __init__(self, label: str, data: bytes) -> None:
        self.label = label
        self.data = data
        self._elf = ELFFile(io.BytesIO(data))
        if not is_x86_64(self._elf):
            raise Refusal(Reason.WRONG_ARCHITECTURE, f"{label} is no object for x86-64")
        table = self._elf.get_section_by_name(".symtab")
        self.symbols = read_symbols(table) if isinstance(table, SymbolTableSection) else []
        self.sections = {item.index: item for item in self._read_sections()}

    def _read_sections(self) -> list[Section]:
        relocations: dict[int, tuple[Relocation, ...]] = {}
        for section in self._elf.iter_sections():
            if isinstance(section, RelocationSection):
                target = self._elf.get_section(section["sh_info"])
                if target["sh_flags"] & SHF_ALLOC:
                    relocations[section["sh_info"]] = self._read_relocations(section)
        found = []
        for index, section in enumerate(self._elf.iter_sections()):
            if not section["sh_flags"] & SHF_ALLOC:
                continue
            kind = str(section["sh_type"])
            found.append(
                Section(
                    index=index,
                    name=section.name,
                    kind=kind,
                    flags=section["sh_flags"],
                    entsize=section["sh_entsize"],
                    align=section["sh_addralign"],
                    size=section["sh_size"],
                    data=b"" if kind == "SHT_NOBITS" else section.data(),
                    relocations=relocations.get(index, ()),
                )
            )
        return found

    def _read_relocations(self, section: RelocationSection) -> tuple[Relocation, ...]:
        items = (
            Relocation(r["r_offset"], r["r_info_type"], self.symbols[r["r_info_sym"]], r["r_addend"])
            for r in section.iter_relocations()
        )
        return tuple(sorted(items, key=lambda item: item.offset))

    def header(self, index: int) -> Any:
        """Return the raw header of a section."""
        return self._elf.get_section(index).header

    @property
    def debug(self) -> DebugInfo:
        """Return the debug information. Raises Refusal."""
        return read_debug_info(self._elf)

    @cached_property
    def lto(self) -> bool:
        """Say whether the object holds GCC's or LLVM's intermediate language instead of code."""
        return any(section.name.startswith(".gnu.lto_") for section in self._elf.iter_sections())

    @cached_property
    def source(self) -> str:
        """Return the base name of the source file (STT_FILE), empty when there is none."""
        return next((item.name for item in self.symbols if item.kind == "STT_FILE"), "")

    @cached_property
    def functions(self) -> dict[str, Function]:
        """Return the functions by name; aliases lead to the same function."""
        places: dict[tuple[int, int], list[Symbol]] = {}
        for item in self.symbols:
            if item.kind in FUNCTION_KINDS and item.section in self.sections:
                places.setdefault((item.section or 0, item.value), []).append(item)
        found: dict[str, Function] = {}
        for (section, start), items in places.items():
            # A name with a version (.symver) is what others know it by; in the object it has one without.
            first = min(items, key=lambda item: ("@" in item.name, item.local, item.bind, item.name))
            aliases = tuple(sorted(item.name for item in items))
            size = max(item.size for item in items)
            kind = IFUNC if any(item.kind in IFUNC_KINDS for item in items) else "STT_FUNC"
            local = all(item.local for item in items)
            function = Function(first.name, section, start, size, local, aliases, kind, first.bind in WEAK)
            found.update(dict.fromkeys(aliases, function))
        return found

    def parent_of(self, function: Function) -> str:
        """Return the name of the function that a cold part belongs to; a function belongs to itself."""
        defined = function.name.partition(".cold")[0]
        return self.functions[defined].name if defined in self.functions else defined

    @cached_property
    def _functions_by_section(self) -> dict[int, list[Function]]:
        found: dict[int, list[Function]] = {}
        for function in dict.fromkeys(self.functions.values()):
            found.setdefault(function.section, []).append(function)
        return found

    def functions_in(self, section: int) -> list[Function]:
        """Return the functions of one section."""
        return self._functions_by_section.get(section, [])

    def function_at(self, section: int, offset: int) -> Function | None:
        """Return the function that an offset in a section means.

        Its end counts, for a call that never returns. In a section of one function everything means that function:
        a jump table's relocation points behind the label by the distance from the table's start.
        """
        for function in self.functions_in(section):
            if function.start <= offset < function.start + max(function.size, 1):
                return function
        inside = self.functions_in(section)
        if len(inside) == 1 and self.sections[section].name.startswith(".text."):
            return inside[0]
        return next((f for f in inside if offset == f.start + f.size), None)

    def body(self, function: Function) -> bytes:
        """Return the bytes of a function."""
        return self.sections[function.section].data[function.start : function.start + function.size]

    def relocations_of(self, function: Function) -> list[Relocation]:
        """Return the relocations inside a function."""
        end = function.start + function.size
        return [r for r in self.sections[function.section].relocations if function.start <= r.offset < end]

    def references_of(self, function: Function) -> list[tuple[Relocation, Place]]:
        """Return the relocations inside a function with the places they point at."""
        biases = self.decoded(function).biases
        return [(item, place_of(item, biases.get(item.offset, 0))) for item in self.relocations_of(function)]

    @cached_property
    def variables(self) -> dict[int, list[Symbol]]:
        """Return the data symbols of each section."""
        found: dict[int, list[Symbol]] = {}
        for item in self.symbols:
            if item.kind in {"STT_OBJECT", "STT_TLS"} and item.section in self.sections:
                found.setdefault(item.section or 0, []).append(item)
        return found

    def variable_at(self, place: Place) -> Symbol | None:
        """Return the data symbol that a reference means."""
        if place.section is None:
            return None
        if place.symbol.kind in {"STT_OBJECT", "STT_TLS"}:
            return place.symbol
        items = self.variables.get(place.section, [])
        if len(items) == 1:
            return items[0]
        covers = [item for item in items if item.value <= place.offset < item.value + max(item.size, 1)]
        return covers[0] if covers else None

    def decoded(self, function: Function) -> "code.Body":
        """Return the instructions of a function with the relocations that belong to them."""
        if function not in self._decoded:
            self._decoded[function] = code.decode(self.body(function), function.start, self.relocations_of(function))
        return self._decoded[function]

    @cached_property
    def _decoded(self) -> dict[Function, "code.Body"]:
        return {}

    def branch_fields(self, section: int) -> set[int]:
        """Return the offsets of the relocations of a section that belong to calls and jumps."""
        return {
            item.offset
            for function in self.functions_in(section)
            for step in self.decoded(function).steps
            if code.is_branch(step.instruction)
            for item in step.relocations
        }

    def places_of(self, section: int) -> list[tuple[Relocation, Place]]:
        """Return every relocation of a section with the place it points at."""
        here = self.sections[section]
        biases: dict[int, int] = {}
        if here.executable:
            for function in self.functions_in(section):
                biases.update(self.decoded(function).biases)
        return [(item, place_of(item, biases.get(item.offset, 0))) for item in here.relocations]


def is_x86_64(elf: ELFFile) -> bool:
    """Say whether a file is what all readers here take for granted: 64 bits, little-endian, x86-64."""
    return (elf["e_machine"], elf.elfclass, elf.little_endian) == ("EM_X86_64", 64, True)


def is_program(elf: ELFFile) -> bool:
    """Say whether a linked file is no library: it has a fixed address, or an interpreter, or says so (static PIE)."""
    if elf["e_type"] == "ET_EXEC" or any(True for _ in elf.iter_segments("PT_INTERP")):
        return True
    dynamic = elf.get_section_by_name(".dynamic")
    flags = dynamic.iter_tags("DT_FLAGS_1") if isinstance(dynamic, DynamicSection) else ()
    return any(tag.entry.d_val & _DF_1_PIE for tag in flags)


def place_of(item: Relocation, bias: int) -> Place:
    """Return where a relocation points; bias is the distance from its field to the end of the instruction."""
    extra = item.addend + (bias if item.type in reloc.PC_RELATIVE else 0)
    symbol = item.symbol
    if symbol.section is None:
        return Place(symbol, None, extra, 0)
    if symbol.kind == "STT_SECTION":
        return Place(symbol, symbol.section, extra, extra)
    return Place(symbol, symbol.section, symbol.value + extra, symbol.value)


def base_name(name: str) -> str:
    """Return the name of a static local without its number (`count.3` -> `count`)."""
    return _SUFFIX.sub("", name)
