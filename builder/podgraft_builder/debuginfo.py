"""The debug information of an object file, with its relocations applied.

pyelftools applies them one parsed entry at a time, which takes most of the time of a build: here, whole tables.
"""

import struct
from dataclasses import dataclass, field
from functools import lru_cache

from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from podgraft_builder import reloc
from podgraft_builder.symtab import Symbol, read_symbols
from podgraft_bundle.errors import Reason, Refusal

_RELOCATION = struct.Struct("<QIIq")  # Elf64_Rela: offset, type, symbol, addend
_NONE = 0  # R_X86_64_NONE
# Where a thread-local variable lies in its block: nobody here reads the number.
_UNWRITTEN = frozenset({_NONE, reloc.R_DTPOFF64, reloc.R_DTPOFF32})
_INFO = ".debug_info"
# Of how many objects the parsed tables are kept, which take many times their size: the old and new ones of a usual fix.
KEPT = 6

SectionOffset = tuple[int, int]


@dataclass(frozen=True)
class DebugInfo:
    """The units; places: offset of a relocated address in .debug_info -> (section, offset) that it means."""

    units: tuple[CompileUnit, ...] = ()
    places: dict[int, SectionOffset] = field(default_factory=dict)


@lru_cache(maxsize=KEPT)
def read_debug_info(elf: ELFFile) -> DebugInfo:
    """Read the debug information of a relocatable object, empty where it has none. Raises Refusal."""
    count = sum(section.name == _INFO and section["sh_size"] > 0 for section in elf.iter_sections())
    if count == 0:
        return DebugInfo()
    if count > 1:  # pyelftools reads one, and a change in the others would not be seen
        raise Refusal(
            Reason.UNSUPPORTED_CHANGE, f"{count} sections are named {_INFO}", "compile with -fno-debug-types-section"
        )
    tables = {
        elf.get_section(section["sh_info"])["sh_offset"]: section.data()
        for section in elf.iter_sections()
        if isinstance(section, RelocationSection)
    }
    table = elf.get_section_by_name(".symtab")
    symbols = read_symbols(table) if isinstance(table, SymbolTableSection) else []
    dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False)
    sections = [one for one in vars(dwarf).values() if isinstance(one, DebugSectionDescriptor) and one.size]
    debug = [one for one in sections if one.name.startswith(".debug")]  # and not .eh_frame
    meant = {one.name: _apply(one, tables.get(one.global_offset or 0, b""), symbols) for one in debug}
    return DebugInfo(tuple(dwarf.iter_CUs()), meant[_INFO])


def _apply(section: DebugSectionDescriptor, table: bytes, symbols: list[Symbol]) -> dict[int, SectionOffset]:
    """Write what the relocations of a section say into it, and return what they mean."""
    places: dict[int, SectionOffset] = {}
    for offset, kind, number, addend in _RELOCATION.iter_unpack(table):
        symbol = symbols[number]
        if symbol.section is not None:
            places[offset] = symbol.section, symbol.value + addend
        if kind in _UNWRITTEN:
            continue
        if kind not in {reloc.R_64, reloc.R_32}:
            raise Refusal(
                Reason.UNSUPPORTED_RELOCATION, f"{section.name} has {reloc.name(kind)}, which is not known there"
            )
        size = reloc.width(kind)
        section.stream.seek(offset)
        section.stream.write(((symbol.value + addend) % (1 << 8 * size)).to_bytes(size, "little"))
    return places
