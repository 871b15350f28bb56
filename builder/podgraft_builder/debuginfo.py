"""The debug information of an object file, with its relocations applied.

pyelftools applies them one parsed entry at a time, which takes most of the time of a build: here, whole tables.
"""

import struct
from dataclasses import dataclass, field

from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from podgraft_builder import reloc
from podgraft_builder.symtab import Entry, read_symbols
from podgraft_bundle.errors import Reason, Refusal

_RELOCATION = struct.Struct("<QIIq")  # Elf64_Rela: offset, type, symbol, addend
_NONE = 0  # R_X86_64_NONE
# Where a thread-local variable lies in its block: nobody here reads the number.
_UNWRITTEN = frozenset({_NONE, reloc.R_DTPOFF64, reloc.R_DTPOFF32})

SectionOffset = tuple[int, int]


@dataclass(frozen=True)
class DebugInfo:
    """The units; places: offset of a relocated address in .debug_info -> (section, offset) that it means."""

    units: tuple[CompileUnit, ...] = ()
    places: dict[int, SectionOffset] = field(default_factory=dict)


def read_debug_info(elf: ELFFile) -> DebugInfo:
    """Read the debug information of a relocatable object, empty where it has none. Raises Refusal."""
    if elf.get_section_by_name(".debug_info") is None:
        return DebugInfo()
    dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False)
    table = elf.get_section_by_name(".symtab")
    symbols = read_symbols(table) if isinstance(table, SymbolTableSection) else []
    places: dict[int, SectionOffset] = {}
    for section in vars(dwarf).values():
        if isinstance(section, DebugSectionDescriptor) and section.name.startswith(".debug"):
            found = _apply(section, elf, symbols)
            if section.name == ".debug_info":
                places = found
    return DebugInfo(tuple(dwarf.iter_CUs()), places)


def _apply(section: DebugSectionDescriptor, elf: ELFFile, symbols: list[Entry]) -> dict[int, SectionOffset]:
    """Write what the relocations of a section say into it, and return what they mean."""
    table = elf.get_section_by_name(f".rela{section.name}")
    places: dict[int, SectionOffset] = {}
    for offset, kind, symbol, addend in _RELOCATION.iter_unpack(table.data() if table is not None else b""):
        meant = symbols[symbol]
        if meant.section is not None:
            places[offset] = meant.section, meant.value + addend
        if kind in _UNWRITTEN:
            continue
        if kind not in {reloc.R_64, reloc.R_32}:
            raise Refusal(
                Reason.UNSUPPORTED_RELOCATION, f"{section.name} has {reloc.name(kind)}, which is not known there"
            )
        size = reloc.width(kind)
        section.stream.seek(offset)
        section.stream.write(((meant.value + addend) % (1 << 8 * size)).to_bytes(size, "little"))
    return places
