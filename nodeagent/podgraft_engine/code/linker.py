# SPDX-License-Identifier: GPL-2.0-only
"""Lay out patch.o in the target's address space and apply its relocations (psABI x86-64 section 4.4).

Three kinds of memory, never writable and executable together: code (with thunks and stubs behind it), read-only data
(with our GOT), data (with the gates that stubs compare with).
"""

import struct
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

from elftools.common.exceptions import DWARFError, ELFError
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.enums import ENUM_RELOC_TYPE_x64

from podgraft_bundle.errors import Reason, Refusal
from podgraft_bundle.manifest import Reference
from podgraft_engine.code.stubs import TRAMPOLINE_SIZE, trampoline
from podgraft_engine.target.ehframe import EhFrame
from podgraft_engine.target.layout import PAGE, pages

GATE_SIZE: Final = 16
MAX_PART: Final = 32 * 2**20
_NAMES: Final = {value: name for name, value in ENUM_RELOC_TYPE_x64.items() if isinstance(value, int)}
_GOT_TYPES: Final = ("R_X86_64_GOTPCREL", "R_X86_64_GOTPCRELX", "R_X86_64_REX_GOTPCRELX")
_FAR_KINDS: Final = ("got", "export")
# What pyelftools and our reading of its answers raise for files that lie about themselves.
_UNREADABLE: Final = (
    *(ELFError, DWARFError, struct.error, LookupError, ValueError, TypeError),
    *(AttributeError, AssertionError, OverflowError, MemoryError, RecursionError),
)


def check_object(data: bytes, references: list[Reference], values: dict[str, int], symbols: list[str], at: int) -> None:
    """Link patch.o on trial: what is wrong with it must be known before a thread is borrowed or a page switched.

    Args:
        data: patch.o.
        references: of the manifest.
        values: value of each reference in the target.
        symbols: the functions that it must define.
        at: where the trial pretends that the area lies.

    Raises:
        Refusal: BUNDLE_MALFORMED, UNRESOLVED_REFERENCE, UNSUPPORTED_RELOCATION, NO_ROOM_NEARBY, NEW_TLS.
    """
    try:
        linked = Image(data, references, 0).link(at, values)
        frames = linked.eh_frame
        if frames is not None:
            start = frames[0] - linked.starts[1]
            if not 0 <= start <= len(linked.contents[1]) - frames[1]:
                raise ValueError(".eh_frame is not constant")
            EhFrame(bytes(linked.contents[1][start : start + frames[1]]), frames[0], None)
    except _UNREADABLE as error:
        raise Refusal(Reason.BUNDLE_MALFORMED, f"patch.o cannot be read: {type(error).__name__}: {error}") from error
    for name in symbols:
        if name not in linked.functions:
            raise Refusal(Reason.UNRESOLVED_REFERENCE, f"patch.o does not define {name}")
    code_end = linked.base + linked.image.code_size
    if any(not linked.base <= start <= start + size <= code_end for start, size in linked.functions.values()):
        raise Refusal(Reason.BUNDLE_MALFORMED, "patch.o has functions outside of its code")


@dataclass
class _Part:
    """One kind of memory: bytes so far, and where each section of patch.o starts in it."""

    data: bytearray = field(default_factory=bytearray)
    sections: dict[int, int] = field(default_factory=dict)

    def reserve(self, size: int, align: int) -> int:
        if align & (align - 1) or align > PAGE or len(self.data) + align + size > MAX_PART:
            raise Refusal(Reason.BUNDLE_MALFORMED, f"patch.o wants {size} bytes aligned to {align}")
        start = -(-len(self.data) // align) * align
        self.data.extend(bytes(start + size - len(self.data)))
        return start


class Image:
    """patch.o laid out; `link` gives it addresses. Sizes in bytes."""

    def __init__(self, data: bytes, references: list[Reference], stub_bytes: int) -> None:
        self._elf = ELFFile(BytesIO(data))
        self._references = {r.symbol: r for r in references}
        self._code, self._constants, self._data = _Part(), _Part(), _Part()
        self._place_sections()
        table: Any = self._elf.get_section_by_name(".symtab")
        self._symbols: list[Any] = list(table.iter_symbols())
        self._got: dict[int, int] = {}  # symbol index -> offset in the constants
        self._thunks: dict[int, int] = {}  # symbol index -> offset in the code
        for section in self._relocation_sections():
            for relocation in section.iter_relocations():
                self._plan(relocation)
        self.stubs_at = self._code.reserve(stub_bytes, 16)
        self.gate_at = self._data.reserve(GATE_SIZE, 16)
        self.code_size = pages(len(self._code.data))
        self.constants_size = pages(len(self._constants.data))
        self.size = self.code_size + self.constants_size + pages(len(self._data.data))

    def link(self, base: int, values: dict[str, int]) -> "Linked":
        """Give every section its address and apply the relocations.

        Args:
            base: start of the area.
            values: value of each reference in the target.

        Raises:
            Refusal: UNRESOLVED_REFERENCE, UNSUPPORTED_RELOCATION, NO_ROOM_NEARBY.
        """
        starts = (base, base + self.code_size, base + self.code_size + self.constants_size)
        parts = (self._code, self._constants, self._data)
        addresses = {
            index: start + offset
            for start, part in zip(starts, parts, strict=True)
            for index, offset in part.sections.items()
        }
        linked = Linked(base, self, starts, [bytearray(part.data) for part in parts])
        for index, offset in self._thunks.items():
            target = self._value(index, addresses, values)
            linked.contents[0][offset : offset + len(trampoline(target))] = trampoline(target)
        for index, offset in self._got.items():
            value = self._value(index, addresses, values)
            struct.pack_into("<Q", linked.contents[1], offset, value & (2**64 - 1))
        for section in self._relocation_sections():
            for relocation in section.iter_relocations():
                self._apply(linked, relocation, addresses, values, section["sh_info"])
        linked.functions = {
            s.name: (addresses[s["st_shndx"]] + s["st_value"], s["st_size"])
            for s in self._symbols
            if s["st_info"]["type"] == "STT_FUNC" and s["st_shndx"] in addresses
        }
        frame = next((i for i, s in enumerate(self._elf.iter_sections()) if s.name == ".eh_frame"), None)
        if frame in addresses:
            linked.eh_frame = (addresses[frame], self._elf.get_section(frame)["sh_size"])
        return linked

    def _place_sections(self) -> None:
        for index, section in enumerate(self._elf.iter_sections()):
            flags = section["sh_flags"]
            if not flags & SH_FLAGS.SHF_ALLOC or not section["sh_size"]:
                continue
            if flags & SH_FLAGS.SHF_TLS:
                raise Refusal(Reason.NEW_TLS, f"patch.o has thread-local data in {section.name}")
            if flags & SH_FLAGS.SHF_EXECINSTR:
                part = self._code
            elif flags & SH_FLAGS.SHF_WRITE:
                part = self._data
            else:
                part = self._constants
            at = part.reserve(section["sh_size"], max(section["sh_addralign"], 1))
            part.sections[index] = at
            if section["sh_type"] != "SHT_NOBITS":
                part.data[at : at + section["sh_size"]] = section.data()

    def _relocation_sections(self) -> list[Any]:
        placed = {*self._code.sections, *self._constants.sections, *self._data.sections}
        return [s for s in self._elf.iter_sections("SHT_RELA") if s["sh_info"] in placed]

    def _plan(self, relocation: Any) -> None:
        """Reserve GOT slots, and thunks for calls that may lead further than 2 GiB."""
        index = relocation["r_info_sym"]
        symbol = self._symbols[index]
        kind = _type_name(relocation)
        if kind in (*_GOT_TYPES, "R_X86_64_GOTTPOFF"):
            if index not in self._got:
                self._got[index] = self._constants.reserve(8, 8)
        elif (
            kind == "R_X86_64_PLT32"
            and symbol["st_shndx"] == "SHN_UNDEF"
            and self._reference(symbol.name).kind in _FAR_KINDS
            and index not in self._thunks
        ):
            self._thunks[index] = self._code.reserve(TRAMPOLINE_SIZE, 16)

    def _reference(self, name: str) -> Reference:
        if name not in self._references:
            raise Refusal(Reason.UNRESOLVED_REFERENCE, f"the manifest does not say where {name} is")
        return self._references[name]

    def _value(self, index: int, addresses: dict[int, int], values: dict[str, int]) -> int:
        """Return the run-time value of a symbol."""
        symbol = self._symbols[index]
        section = symbol["st_shndx"]
        if section == "SHN_UNDEF":
            return values[self._reference(symbol.name).symbol]
        if section == "SHN_ABS":
            return int(symbol["st_value"])
        if section not in addresses:
            raise Refusal(Reason.UNRESOLVED_REFERENCE, f"{symbol.name or 'a symbol'} lies in a section without memory")
        return addresses[section] + int(symbol["st_value"])

    def _apply(
        self, linked: "Linked", relocation: Any, addresses: dict[int, int], values: dict[str, int], section: int
    ) -> None:
        index = relocation["r_info_sym"]
        kind = _type_name(relocation)
        place = addresses[section] + relocation["r_offset"]
        if kind in (*_GOT_TYPES, "R_X86_64_GOTTPOFF"):
            value = linked.starts[1] + self._got[index]
        elif kind == "R_X86_64_PLT32" and index in self._thunks:
            value = linked.starts[0] + self._thunks[index]
        else:
            value = self._value(index, addresses, values)
        what = f"{self._symbols[index].name or 'a section'} at {place:#x}"
        linked.put(kind, place, value + relocation["r_addend"], what)


@dataclass
class Linked:
    """The image with its addresses: contents of code, constants and data; functions by name (address, size)."""

    base: int
    image: Image
    starts: tuple[int, int, int]
    contents: list[bytearray]
    functions: dict[str, tuple[int, int]] = field(default_factory=dict)
    eh_frame: tuple[int, int] | None = None

    @property
    def stubs(self) -> int:
        """Address of the room for stubs."""
        return self.base + self.image.stubs_at

    @property
    def gate(self) -> int:
        """Address of the two words that stubs compare with."""
        return self.starts[2] + self.image.gate_at

    def put(self, kind: str, place: int, value: int, what: str) -> None:
        """Write one relocated field."""
        form = {
            "R_X86_64_64": ("<Q", value & (2**64 - 1)),
            "R_X86_64_PC64": ("<q", value - place),
            "R_X86_64_32": ("<I", value),
            "R_X86_64_32S": ("<i", value),
            "R_X86_64_TPOFF32": ("<i", value),
            "R_X86_64_PC32": ("<i", value - place),
            "R_X86_64_PLT32": ("<i", value - place),
            "R_X86_64_GOTTPOFF": ("<i", value - place),
            **dict.fromkeys(_GOT_TYPES, ("<i", value - place)),
        }.get(kind)
        if form is None:
            raise Refusal(Reason.UNSUPPORTED_RELOCATION, f"{kind} for {what}")
        index = max(i for i, start in enumerate(self.starts) if place >= start and self.contents[i])
        try:
            struct.pack_into(form[0], self.contents[index], place - self.starts[index], form[1])
        except struct.error:
            raise Refusal(Reason.NO_ROOM_NEARBY, f"{kind} for {what} does not fit its field") from None


def _type_name(relocation: Any) -> str:
    return _NAMES.get(relocation["r_info_type"], f"relocation type {relocation['r_info_type']}")
