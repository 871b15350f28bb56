"""The binary that runs: its bytes, symbols, GOT slots and PLT entries, all by link-time address."""

import io
import lzma
import struct
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from elftools.common.exceptions import ELFError
from elftools.dwarf.callframe import FDE
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import Section, SymbolTableSection
from iced_x86 import Decoder, FlowControl, OpKind, Register

from podgraft_builder.objects import WEAK, is_program, is_x86_64
from podgraft_builder.symtab import Symbol, read_symbols
from podgraft_bundle.buildid import read_build_id
from podgraft_bundle.errors import Reason, Refusal

DEBUG_FOLDER = Path("/usr/lib/debug/.build-id")
# psABI x86-64, table 4.10
_COPY, _GLOB_DAT, _JUMP_SLOT, _R_64, DTPMOD64, TPOFF64, RELATIVE, IRELATIVE = 5, 6, 7, 1, 16, 18, 8, 37
SYMBOLIC = frozenset({_GLOB_DAT, _JUMP_SLOT, _R_64})
_RELA = struct.Struct("<QQq")  # Elf64_Rela: offset, info, addend
_PLT_SECTIONS = (".plt.sec", ".plt", ".plt.got", ".iplt")


class Named(NamedTuple):
    """A symbol of the running binary; file is the source file of a local one (STT_FILE)."""

    name: str
    file: str
    kind: str
    local: bool
    address: int
    size: int
    hidden: bool = False
    weak: bool = False

    @property
    def shared(self) -> bool:
        """Say whether other objects may mean this name: hidden ones are local only because the linker made them so."""
        return self.hidden or not self.local


class RunningBinary:
    """An executable or shared object with its symbols (its own, or those of a debug file with the same build id)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = path.read_bytes()
        try:
            self._elf = ELFFile(io.BytesIO(data))
        except ELFError as error:
            raise Refusal(Reason.BINARY_NOT_BUILT, f"{path} is no ELF file: {error}") from error
        if not is_x86_64(self._elf):
            raise Refusal(Reason.WRONG_ARCHITECTURE, f"{path} is for {self._elf.get_machine_arch()}, not x86-64")
        build_id = read_build_id(io.BytesIO(data))
        if build_id is None:
            raise Refusal(Reason.UNRESOLVED_REFERENCE, f"{path} has no build id", "link it with -Wl,--build-id=sha1")
        self.build_id = build_id
        self.missing: set[str] = set()  # names that the build defines and that were not found in this binary
        text = self._elf.get_section_by_name(".text")
        if text is None or text["sh_type"] == "SHT_NOBITS":
            raise Refusal(
                Reason.UNRESOLVED_REFERENCE,
                f"{path} holds no code: it is a debug file",
                f"give the binary itself; its debug file is found below {DEBUG_FOLDER}",
            )
        self._segments = [
            (s["p_vaddr"], s["p_filesz"], s["p_memsz"], s.data()) for s in self._elf.iter_segments("PT_LOAD")
        ]

    @cached_property
    def text(self) -> tuple[int, bytes]:
        """Return address and bytes of .text."""
        found = self._elf.get_section_by_name(".text")
        return (found["sh_addr"], bytes(found.data())) if found is not None else (0, b"")

    def section(self, name: str) -> bytes:
        """Return the bytes of a section, none where it is missing."""
        found = self._elf.get_section_by_name(name)
        return bytes(found.data()) if found is not None else b""

    def read(self, address: int, size: int) -> bytes | None:
        """Return file-backed bytes (zeros for .bss), None where nothing is mapped."""
        for start, file_size, memory_size, data in self._segments:
            if start <= address and address + size <= start + memory_size:
                at = address - start
                return bytes(data[at : min(at + size, file_size)].ljust(size, b"\0"))
        return None

    def string(self, address: int, width: int) -> bytes | None:
        """Return the string at an address without its end; width is that of a character in bytes."""
        for start, file_size, _, data in self._segments:
            if start <= address < start + file_size:
                end = at = address - start
                while end < file_size and any(data[end : end + width]):
                    end += width
                return bytes(data[at:end])
        return None

    @cached_property
    def _table(self) -> SymbolTableSection | None:
        tables = [self._elf.get_section_by_name(".symtab"), self._debug_symbols()]
        return next((t for t in tables if isinstance(t, SymbolTableSection)), None)

    @property
    def partial(self) -> bool:
        """Say whether most symbols are missing, so that functions must be found by their code."""
        return self._table is None

    @cached_property
    def symbols(self) -> list[Named]:
        """Return all symbols: of .symtab, of a debug file, or the few that a stripped file has (see `partial`)."""
        if self._table is not None:
            return _read_symbols(self._table)
        found = [self._elf.get_section_by_name(".dynsym"), self._mini_symbols()]
        return [named for t in found if isinstance(t, SymbolTableSection) for named in _read_symbols(t)]

    @cached_property
    def _debug_file(self) -> ELFFile | None:
        path = DEBUG_FOLDER / self.build_id[:2] / f"{self.build_id[2:]}.debug"
        return ELFFile(io.BytesIO(path.read_bytes())) if path.is_file() else None

    def _debug_symbols(self) -> Section | None:
        return self._debug_file.get_section_by_name(".symtab") if self._debug_file is not None else None

    @cached_property
    def producers(self) -> set[str]:
        """Return the compilers that the debug information names, the binary's own or its debug file's."""
        found = set()
        for elf in (self._elf, self._debug_file):
            if elf is not None and elf.get_section_by_name(".debug_info") is not None:
                for unit in elf.get_dwarf_info().iter_CUs():
                    attribute = unit.get_top_DIE().attributes.get("DW_AT_producer")
                    if attribute is not None and isinstance(attribute.value, bytes):  # not so in files that dwz made
                        found.add(attribute.value.decode(errors="replace"))
        return found

    def _mini_symbols(self) -> Section | None:
        """Return the symbols of functions that a stripped file may carry, compressed (GDB manual, "MiniDebugInfo")."""
        data = self.section(".gnu_debugdata")
        if not data:
            return None
        try:
            return ELFFile(io.BytesIO(lzma.decompress(data))).get_section_by_name(".symtab")
        except (lzma.LZMAError, ELFError) as error:
            raise Refusal(
                Reason.UNRESOLVED_REFERENCE, f"{self.path}: .gnu_debugdata cannot be read: {error}"
            ) from error

    @cached_property
    def frames(self) -> dict[int, int]:
        """Return address -> size of all code with unwind information: of each function, and each cold part."""
        if not self.section(".eh_frame"):
            return {}
        entries = self._elf.get_dwarf_info().EH_CFI_entries()
        start, text = self.text
        found = {e["initial_location"]: e["address_range"] for e in entries if isinstance(e, FDE)}
        return {at: size for at, size in sorted(found.items()) if start <= at < start + len(text)}

    def adopt(self, symbols: list[Named], built: set[str]) -> None:
        """Take symbols that were proven; built: global names that the build defines, found or not."""
        self._replace(symbols)
        self.missing = built - self.by_name.keys()

    def share(self, demoted: set[Named]) -> None:
        """Let other objects mean symbols that are local in this file alone."""
        self._replace([item._replace(hidden=item.hidden or item in demoted) for item in self.symbols])

    def _replace(self, symbols: list[Named]) -> None:
        self.__dict__.update(symbols=symbols)
        for name in ("by_name", "names_at"):
            self.__dict__.pop(name, None)

    def named(self, name: str, *, local: bool) -> list[Named]:
        """Return the symbols that an object can mean by a name: a static one is none that is exported."""
        return [item for item in self.by_name.get(name, []) if item.local or not local]

    @cached_property
    def by_name(self) -> dict[str, list[Named]]:
        """Return the symbols by name."""
        found: dict[str, list[Named]] = defaultdict(list)
        for item in self.symbols:
            found[item.name].append(item)
        return dict(found)

    @cached_property
    def exported(self) -> set[str]:
        """Return the names that the dynamic symbol table defines."""
        return {entry.name for entry in self._exports}

    @cached_property
    def imported(self) -> set[str]:
        """Return the names that the dynamic symbol table wants from others."""
        return {entry.name for entry in self._dynamic_symbols if entry.section is None}

    @cached_property
    def canonical(self) -> dict[str, int]:
        """Return imported function -> the PLT entry that is its address for the whole process (psABI, 5.2)."""
        return {entry.name: entry.value for entry in self._dynamic_symbols if entry.section is None and entry.value}

    @cached_property
    def _exports(self) -> list[Symbol]:
        return [entry for entry in self._dynamic_symbols if entry.section is not None]

    @cached_property
    def _dynamic_symbols(self) -> list[Symbol]:
        table = self._elf.get_section_by_name(".dynsym")
        return read_symbols(table) if isinstance(table, SymbolTableSection) else []

    def preemptible(self, name: str) -> bool:
        """Say whether this is a library that the loader may find a name of in another module first.

        See gABI, "Shared Object Dependencies" and DF_SYMBOLIC. A program may hold a copy of such a variable, which all
        use in its place (psABI section 3.4.1, R_X86_64_COPY).
        """
        return name in self._preemptible

    @cached_property
    def _preemptible(self) -> set[str]:
        if self.executable or self._flag("DT_FLAGS", 2) or "DT_SYMBOLIC" in self._tags:
            return set()
        return {entry.name for entry in self._exports if entry.visibility == "STV_DEFAULT"}

    @cached_property
    def slots(self) -> dict[int, tuple[str, int]]:
        """Return GOT slot -> (symbol that the loader puts there, relocation type)."""
        kinds = SYMBOLIC | {TPOFF64}
        return {at: (name, kind) for at, (name, kind, _) in self.relocated.items() if name and kind in kinds}

    @cached_property
    def relocated(self) -> dict[int, tuple[str, int, int]]:
        """Return address -> (symbol, relocation type, addend) of what the loader fills in.

        Packed relative relocations (gABI, SHT_RELR) are not in it: their addends lie in place.
        """
        found = {}
        for section in self._elf.iter_sections():
            if not (isinstance(section, RelocationSection) and section["sh_flags"] & 2):
                continue
            table = self._elf.get_section(section["sh_link"])
            symbols = read_symbols(table) if isinstance(table, SymbolTableSection) else []
            for offset, info, addend in _RELA.iter_unpack(section.data()):
                number, kind = info >> 32, info & 0xFFFFFFFF
                name, value = (symbols[number].name, symbols[number].value) if 0 < number < len(symbols) else ("", 0)
                if kind == _R_64 and not name:  # a section
                    found[offset] = ("", RELATIVE, value + addend)
                else:
                    found[offset] = (name, kind, addend)
        return found

    def pointer(self, address: int) -> tuple[str, int, int]:
        """Return symbol, relocation type and value of a pointer in the file; packed relative ones are in place."""
        found = self.relocated.get(address)
        return found or ("", RELATIVE, int.from_bytes(self.read(address, 8) or b"", "little"))

    def slot_of(self, name: str, *, address_taken: bool) -> int | None:
        """Return a GOT slot that holds the address of an imported symbol once the loader is done with it.

        A slot of the PLT holds the function itself only when the loader binds at once (psABI section 5.2).
        """
        got = self._elf.get_section_by_name(".got")
        plt = self._elf.get_section_by_name(".got.plt")
        tables = [(t["sh_addr"], t["sh_addr"] + t["sh_size"]) for t in (got, plt) if t is not None]
        for slot, (symbol, kind) in sorted(self.slots.items()):
            if symbol != name or not any(low <= slot < high for low, high in tables):
                continue
            if kind == _GLOB_DAT or (kind == _JUMP_SLOT and (self.binds_now or not address_taken)):
                return slot
        return None

    @cached_property
    def binds_now(self) -> bool:
        """Say whether the loader fills every slot before the program starts (gABI, DF_BIND_NOW)."""
        return self._flag("DT_FLAGS", 8) or self._flag("DT_FLAGS_1", 1) or "DT_BIND_NOW" in self._tags

    @cached_property
    def _tags(self) -> dict[str, int]:
        section = self._elf.get_section_by_name(".dynamic")
        if not isinstance(section, DynamicSection):
            return {}
        return {tag.entry.d_tag: tag.entry.d_val for tag in section.iter_tags()}

    def _flag(self, tag: str, bit: int) -> bool:
        return bool(self._tags.get(tag, 0) & bit)

    @cached_property
    def plt(self) -> dict[int, str]:
        """Return PLT entry -> imported function, found by what each entry jumps through."""
        return {entry: self.slots[slot][0] for entry, slot in self.entries.items() if slot in self.slots}

    @cached_property
    def chosen(self) -> dict[int, int]:
        """Return PLT entry -> the resolver that chooses at start where it leads (gABI of GNU, STT_GNU_IFUNC)."""
        pointers = {entry: self.relocated[slot] for entry, slot in self.entries.items()}
        return {entry: value for entry, (_, kind, value) in pointers.items() if kind == IRELATIVE}

    def chosen_entry(self, resolver: int) -> int | None:
        """Return the PLT entry for what a resolver chooses."""
        return next((entry for entry, address in sorted(self.chosen.items()) if address == resolver), None)

    @cached_property
    def entries(self) -> dict[int, int]:
        """Return PLT entry -> the slot that it jumps through, where the loader fills it."""
        found: dict[int, int] = {}
        for name in _PLT_SECTIONS:
            section = self._elf.get_section_by_name(name)
            if section is None:
                continue
            size = section["sh_entsize"]
            # Where none is told: 8 in the static programs of GNU ld, 16 in what mold makes.
            step = size if size in {8, 16} else 8
            data = section.data()
            for at in range(0, len(data) - step + 1, step):
                slot = _jumps_through(data[at : at + (size or 16)], section["sh_addr"] + at)
                if slot in self.relocated:
                    found.setdefault(section["sh_addr"] + at, slot)
        return found

    def plt_of(self, name: str) -> int | None:
        """Return the PLT entry of an imported function."""
        return next((address for address, symbol in sorted(self.plt.items()) if symbol == name), None)

    def tpoff(self, symbol: Named) -> int | None:
        """Return the offset of a thread-local variable from the thread pointer (executables only; psABI 3.4.6)."""
        for segment in self._elf.iter_segments("PT_TLS"):
            align = max(segment["p_align"], 1)
            end = segment["p_vaddr"] + segment["p_memsz"]
            size = -(-end // align) * align - segment["p_vaddr"]
            return int(symbol.address - size) if self.executable else None
        return None

    @cached_property
    def executable(self) -> bool:
        """Say whether this is a program, not a library."""
        return is_program(self._elf)

    @cached_property
    def names_at(self) -> dict[int, list[Named]]:
        """Return the symbols by address."""
        found: dict[int, list[Named]] = defaultdict(list)
        for item in self.symbols:
            found[item.address].append(item)
        return dict(found)


def _read_symbols(table: SymbolTableSection) -> list[Named]:
    found, file, forced = [], "", False
    for item in read_symbols(table):
        if item.kind == "STT_FILE":
            # GNU ld drops the visibility of hidden names that it makes local, and puts them behind a file without a
            # name, so that they do not seem to belong to the file before (bfd/elflink.c, bfd_elf_final_link).
            file, forced = item.name, not item.name
        elif item.section is not None and item.name:
            local = item.bind == "STB_LOCAL"
            name = item.name.split("@", 1)[0]
            hidden = (local and forced) or item.visibility in {"STV_HIDDEN", "STV_INTERNAL"}
            where = file if local else ""
            found.append(Named(name, where, item.kind, local, item.value, item.size, hidden, item.bind in WEAK))
    return found


def _jumps_through(data: bytes, address: int) -> int:
    """Return the slot that a PLT entry jumps through, 0 where it does not."""
    for instruction in Decoder(64, data, ip=address):
        if instruction.flow_control == FlowControl.INDIRECT_BRANCH:
            if instruction.op0_kind == OpKind.MEMORY and instruction.memory_base == Register.RIP:
                return int(instruction.memory_displacement)
            return 0
    return 0
