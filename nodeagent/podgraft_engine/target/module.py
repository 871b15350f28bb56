# SPDX-License-Identifier: GPL-2.0-only
"""An ELF file as the target maps it: build id, load bias, exported symbols, function ranges from .eh_frame."""

import os
import struct
from functools import cached_property
from typing import Any, BinaryIO, Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from podgraft_bundle.buildid import read_build_id
from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.target.ehframe import EhFrame
from podgraft_engine.target.layout import PAGE
from podgraft_engine.target.proc import Mapping, Process, denied
from podgraft_engine.target.search import places_of

_HIDDEN: Final = 0x8000
_NAME_OF_SYMBOL: Final = struct.Struct("<I20x")
_LARGEST_TEXT: Final = 512 * 2**20
_SLOTS: Final = (6, 7)  # R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT
_SIGRETURN: Final = b"\x0f\0\0\0\x0f\x05"
_LOADS: Final = (b"\xb8", b"\x48\xc7\xc0")  # mov to eax, to rax


class Module:
    """One mapped file. bias: what is added to a link-time virtual address. copies: how often it is loaded (dlmopen)."""

    def __init__(self, stream: BinaryIO, mappings: list[Mapping], copy: int = 0) -> None:
        """Read the file. mappings: all of it, in order of address. copy: which of several is meant."""
        self._stream = stream
        self.elf = ELFFile(stream)
        self.build_id = read_build_id(stream)
        loads = [segment.header for segment in self.elf.iter_segments("PT_LOAD")]
        self._texts = [load for load in loads if load["p_flags"] & 1]
        bases = [m for m in mappings if m.offset == loads[0].p_offset // PAGE * PAGE]
        # A program may map its own file once more to read symbols from it.
        loaded = [m for m in bases if self._runs_at(m.start - loads[0].p_vaddr // PAGE * PAGE, mappings)]
        self.copies = len(loaded)
        base = (loaded or bases)[copy]
        self.bias = base.start - loads[0].p_vaddr // PAGE * PAGE
        # Page clones of ours map the same file at other places.
        places = [(load.p_vaddr // PAGE - load.p_offset // PAGE) * PAGE for load in loads]
        self.mappings = [m for m in mappings if m.start - self.bias - m.offset in places]
        self.path = base.path
        self._ranges: dict[str, list[tuple[int, int]]] = {}
        self.name = self.path.removesuffix(" (deleted)").rsplit("/", 1)[-1]

    def _runs_at(self, bias: int, mappings: list[Mapping]) -> bool:
        """Tell whether the first and the last page of all code are mapped executable with this bias."""
        code = [m for m in mappings if "x" in m.perms]
        return all(
            any(
                m.start <= at < m.end and m.start - m.offset == bias + (t.p_vaddr - t.p_offset) // PAGE * PAGE
                for m in code
            )
            for t in self._texts
            for at in (bias + t.p_vaddr, bias + t.p_vaddr + t.p_filesz - 1)
        )

    @property
    def middle(self) -> int:
        """The address that our memory should lie near."""
        return (self.mappings[0].start + self.mappings[-1].end) // 2

    @cached_property
    def eh_frame(self) -> EhFrame | None:
        """The unwind information of the file, None when it has none."""
        return EhFrame.of_elf(self.elf)

    @cached_property
    def signal_returns(self) -> list[int]:
        """Addresses of `mov $15,%eax; syscall` (rt_sigreturn), to which every signal handler returns."""
        found = []
        for start, text in self.texts():
            for at in places_of(_SIGRETURN, text):
                found += [start + at - len(load) for load in _LOADS if text.endswith(load, 0, at)]
        return found

    def read_ahead(self) -> None:
        """Read now what takes long for large files, so that nobody waits for it later."""
        _ = self.eh_frame, self.signal_returns, self.is_glibc

    @cached_property
    def runs_goroutines(self) -> bool:
        """Tell whether it is a Go program: its goroutines have no thread of their own."""
        return self.elf.get_section_by_name(".gopclntab") is not None

    @cached_property
    def is_glibc(self) -> bool:
        """Tell whether it is the GNU C library."""
        return self.export("gnu_get_libc_version", "GLIBC_2.2.5") is not None

    @cached_property
    def _exported(self) -> dict[str, list[int]]:
        """Indexes into .dynsym by name; pyelftools would parse every symbol for each name that is looked up."""
        table: Any = self.elf.get_section_by_name(".dynsym")
        if table is None:
            return {}
        names: bytes = self.elf.get_section(table["sh_link"]).data()
        found: dict[str, list[int]] = {}
        for index, (at,) in enumerate(_NAME_OF_SYMBOL.iter_unpack(table.data())):
            name = names[at : names.index(b"\0", at)].decode(errors="replace")
            found.setdefault(name, []).append(index)
        return found

    def exported_range(self, name: str) -> list[tuple[int, int]]:
        """Return start and end of an exported function, at most one pair; empty when it is not known."""
        if name not in self._ranges:
            found, frames = self.export(name, None), self.eh_frame
            bounds = frames.range_of(found[0] - self.bias) if found and frames else None
            self._ranges[name] = [(bounds[0] + self.bias, bounds[1] + self.bias)] if bounds else []
        return self._ranges[name]

    def functions_named(self, name: str) -> set[int]:
        """Return the run-time addresses of the functions of a name, exported or local."""
        tables: list[Any] = [self.elf.get_section_by_name(table) for table in (".symtab", ".dynsym")]
        return {
            self.bias + symbol["st_value"]
            for table in tables
            if table is not None
            for symbol in table.iter_symbols()
            if symbol.name == name and symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] != "SHN_UNDEF"
        }

    def original(self, address: int, size: int) -> bytes | None:
        """Return bytes of the code as the file has them, whatever was patched since; None outside of its code."""
        for load in self._texts:
            start = self.bias + load["p_vaddr"]
            if start <= address and address + size <= start + load["p_filesz"]:
                self._stream.seek(load["p_offset"] + address - start)
                return self._stream.read(size)
        return None

    def texts(self) -> list[tuple[int, bytes]]:
        """Return the code of the file: run-time address and bytes of each executable segment."""
        segments = [s for s in self.elf.iter_segments("PT_LOAD") if s["p_flags"] & 1 and s["p_filesz"] <= _LARGEST_TEXT]
        return [(self.bias + s["p_vaddr"], s.data()) for s in segments]

    def slots_of(self, name: str) -> list[int]:
        """Return the run-time addresses of the slots by which the module calls a function (psABI x86-64, JUMP_SLOT)."""
        wanted = set(self._exported.get(name, ()))
        sections: list[Any] = [self.elf.get_section_by_name(table) for table in (".rela.plt", ".rela.dyn")]
        return [
            self.bias + r["r_offset"]
            for section in sections
            if section is not None
            for r in section.iter_relocations()
            if r["r_info_sym"] in wanted and r["r_info_type"] in _SLOTS
        ]

    def imports(self, *prefixes: str) -> bool:
        """Tell whether the module takes a function whose name begins so from another one."""
        table: Any = self.elf.get_section_by_name(".dynsym")
        indexes = [i for name, found in self._exported.items() if name.startswith(prefixes) for i in found]
        return any(table.get_symbol(index)["st_shndx"] == "SHN_UNDEF" for index in indexes)

    def contains(self, address: int) -> bool:
        """Tell whether an address lies in executable memory of the file."""
        return any(m.start <= address < m.end and "x" in m.perms for m in self.mappings)

    def export(self, name: str, version: str | None) -> tuple[int, bool] | None:
        """Return run-time address of an exported symbol and whether it is an ifunc; None when it is not exported.

        Without a version the default one is meant (name@@VERSION), as for a program that is linked today.
        """
        table: Any = self.elf.get_section_by_name(".dynsym")
        versions: Any = self.elf.get_section_by_name(".gnu.version")
        definitions: Any = self.elf.get_section_by_name(".gnu.version_d")
        for index in self._exported.get(name, ()):
            symbol = table.get_symbol(index)
            if symbol["st_shndx"] == "SHN_UNDEF":
                continue
            if symbol["st_info"]["bind"] not in ("STB_GLOBAL", "STB_WEAK"):
                continue
            if not _version_fits(versions, definitions, index, version):
                continue
            kind: Any = symbol["st_info"]["type"]
            return self.bias + symbol["st_value"], kind in ("STT_GNU_IFUNC", "STT_LOOS")
        return None

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _version_fits(versions: Any, definitions: Any, index: int, wanted: str | None) -> bool:
    """Tell whether a symbol has the wanted version, or is the default one (LSB core, symbol versioning)."""
    if versions is None:
        return wanted is None
    number = versions.get_symbol(index)["ndx"]
    if isinstance(number, str):  # local or global: the object does not version this symbol
        return wanted is None
    if wanted is None:
        return not number & _HIDDEN
    auxiliaries = definitions.get_version(number & ~_HIDDEN)[1] if definitions else ()
    return any(auxiliary.name == wanted for auxiliary in auxiliaries)


def modules_of(process: Process) -> list[Module]:
    """Return every ELF file that is loaded, once for each copy; map_files has the very inode, also when deleted."""
    groups: dict[tuple[str, int, str], list[Mapping]] = {}
    for mapping in process.maps():
        if mapping.inode and mapping.path.startswith("/"):
            groups.setdefault((mapping.device, mapping.inode, mapping.path), []).append(mapping)
    result = []
    for mappings in groups.values():
        if any("x" in m.perms for m in mappings) and any(m.offset == 0 for m in mappings):
            first = _open(process, mappings, 0)
            others = [_open(process, mappings, copy) for copy in range(1, first.copies)] if first else []
            result += [module for module in (first, *others) if module is not None]
    return result


def find_module(modules: list[Module], build_id: str, name: str) -> Module:
    """Return the module with this build id.

    Raises:
        Refusal: MODULE_NOT_MAPPED, naming what of that name is mapped instead.
    """
    found = [m for m in modules if m.build_id == build_id]
    if len(found) > 1:
        detail = f"{name} is loaded {len(found)} times, and only one copy can be patched"
        raise Refusal(Reason.UNSUPPORTED_TARGET, detail)
    if found:
        return found[0]
    others = [f"{m.name} has build id {m.build_id}" for m in modules if m.name == name]
    detail = "; ".join(others) or f"the process maps no code of {name}"
    raise Refusal(Reason.MODULE_NOT_MAPPED, f"build id {build_id} ({name}) is wanted, {detail}")


def _open(process: Process, mappings: list[Mapping], copy: int) -> Module | None:
    first = min(mappings, key=lambda m: m.start)
    path = f"/proc/{process.living_thread()}/map_files/{first.start:x}-{first.end:x}"
    try:
        stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb")
    except PermissionError:
        raise denied(process.pid) from None
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        return Module(stream, sorted(mappings, key=lambda m: m.start), copy)
    except (ELFError, StopIteration, ValueError, IndexError, KeyError, OverflowError):
        stream.close()
        return None
