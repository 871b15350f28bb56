"""The debug information of an object file, with its relocations applied.

pyelftools applies them one parsed entry at a time, which takes most of the time of a build: here, whole tables.
"""

import struct
from dataclasses import dataclass, field

from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor
from elftools.elf.elffile import ELFFile

from podgraft_builder import reloc
from podgraft_bundle.errors import Reason, Refusal

_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, section, value, size
_RELOCATION = struct.Struct("<QIIq")  # Elf64_Rela: offset, type, symbol, addend
_RESERVED = 0xFF00  # SHN_LORESERVE: from here on no section
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
    symbols = _symbols(elf)
    places: dict[int, SectionOffset] = {}
    for section in vars(dwarf).values():
        if isinstance(section, DebugSectionDescriptor) and section.name.startswith(".debug"):
            found = _apply(section, elf, symbols)
            if section.name == ".debug_info":
                places = found
    return DebugInfo(tuple(dwarf.iter_CUs()), places)


def _symbols(elf: ELFFile) -> list[SectionOffset]:
    """Return section and value of each symbol."""
    table = elf.get_section_by_name(".symtab")
    data = table.data() if table is not None else b""
    return [(section, value) for _, _, _, section, value, _ in _SYMBOL.iter_unpack(data)]


def _apply(section: DebugSectionDescriptor, elf: ELFFile, symbols: list[SectionOffset]) -> dict[int, SectionOffset]:
    """Write what the relocations of a section say into it, and return what they mean."""
    table = elf.get_section_by_name(f".rela{section.name}")
    places: dict[int, SectionOffset] = {}
    for offset, kind, symbol, addend in _RELOCATION.iter_unpack(table.data() if table is not None else b""):
        where, value = symbols[symbol]
        if 0 < where < _RESERVED:
            places[offset] = where, value + addend
        if kind in _UNWRITTEN:
            continue
        if kind not in {reloc.R_64, reloc.R_32}:
            raise Refusal(
                Reason.UNSUPPORTED_RELOCATION, f"{section.name} has {reloc.name(kind)}, which is not known there"
            )
        size = reloc.width(kind)
        section.stream.seek(offset)
        section.stream.write(((value + addend) % (1 << 8 * size)).to_bytes(size, "little"))
    return places
