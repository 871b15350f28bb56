"""Bundles for engine tests, straight from a compiler: the engine is tested without the builder."""

import hashlib
import subprocess
from pathlib import Path

from elftools.elf.elffile import ELFFile

from podgraft_bundle.buildid import read_build_id
from podgraft_bundle.bundle import Bundle, write_bundle
from podgraft_bundle.manifest import (
    ARENA,
    Hook,
    Manifest,
    Module,
    ObjectFile,
    Range,
    Reference,
    ReplacedFunction,
    version_for,
)

HEADER = Path(__file__).parents[2] / "builder" / "podgraft_builder" / "include"
CFLAGS = ["-O2", "-g", "-fPIE", "-Wall", "-pthread"]


def compile_program(source: Path, out: Path, *flags: str, compiler: str = "gcc") -> Path:
    """Compile a target program."""
    subprocess.run([compiler, *CFLAGS, *flags, "-o", out, source], check=True)
    return out


def compile_object(source: Path, out: Path, *flags: str, compiler: str = "gcc") -> Path:
    """Compile the new functions into a relocatable."""
    subprocess.run(
        [compiler, *CFLAGS, "-ffunction-sections", "-idirafter", HEADER, *flags, "-c", "-o", out, source], check=True
    )
    return out


def forge(  # noqa: PLR0917 (what a bundle consists of)
    program: Path,
    relocatable: Path,
    functions: list[str],
    out: Path,
    name: str = "pairs-2",
    limit: float = 5.0,
    gone: tuple[str, ...] = (),
    **more: list[str],
) -> Bundle:
    """Write a bundle that replaces `functions` of `program` by those of the relocatable.

    gone: functions that are old code as well. more: further fields of the manifest.
    """
    with program.open("rb") as stream, relocatable.open("rb") as objects:
        elf, new = ELFFile(stream), ELFFile(objects)
        symbols = {s.name: s for s in elf.get_section_by_name(".symtab").iter_symbols() if s.name}
        text = elf.get_section_by_name(".text")
        old = {}
        for function in (*functions, *gone):
            symbol = symbols[function]
            start, size = symbol["st_value"], symbol["st_size"]
            code = text.data()[start - text["sh_addr"] : start - text["sh_addr"] + size]
            old[function] = Range(symbol=function, offset=start, size=size, sha256=hashlib.sha256(code).hexdigest())
        replaced = [ReplacedFunction(entry=old[function], new_symbol=function) for function in functions]
        slots = _got_slots(elf)
        references = []
        for symbol in new.get_section_by_name(".symtab").iter_symbols():
            if symbol["st_shndx"] != "SHN_UNDEF" or not symbol.name:
                continue
            known = symbols.get(symbol.name)
            if symbol.name == ARENA:
                references.append(Reference(symbol=ARENA, kind="arena"))
            elif known is not None and known["st_shndx"] != "SHN_UNDEF":
                references.append(Reference(symbol=symbol.name, kind="offset", offset=known["st_value"]))
            elif symbol.name in slots:
                references.append(Reference(symbol=symbol.name, kind="got", offset=slots[symbol.name]))
            else:
                references.append(Reference(symbol=symbol.name, kind="export", export=symbol.name))
        build_id = read_build_id(stream)
        hooks = _hooks(new, limit)
    data = relocatable.read_bytes()
    assert build_id is not None
    manifest = Manifest(
        name=name,
        cves=["CVE-2026-0001"],
        module=Module(name=program.name, build_id=build_id),
        functions=replaced,
        gone=[old[function] for function in gone],
        references=references,
        **more,
        hooks=hooks,
        format_version=version_for(hooks, references),
        object=ObjectFile(size=len(data), sha256=hashlib.sha256(data).hexdigest()),
    )
    return write_bundle(manifest, data, out)


def _got_slots(elf: ELFFile) -> dict[str, int]:
    """Return where the program keeps the addresses of imported functions."""
    names = elf.get_section_by_name(".dynsym")
    return {
        names.get_symbol(r["r_info_sym"]).name: r["r_offset"]
        for section in elf.iter_sections("SHT_RELA")
        for r in section.iter_relocations()
        if r["r_info_sym"] and r["r_info_type"] in (6, 7)
    }


def _hooks(elf: ELFFile, limit: float) -> list[Hook]:
    """Return the functions that podgraft.h has put into sections of their own."""
    return [
        Hook(kind=name.removeprefix(".podgraft."), symbol=symbol.name, limit=limit)
        for symbol in elf.get_section_by_name(".symtab").iter_symbols()
        if symbol["st_info"]["type"] == "STT_FUNC" and isinstance(symbol["st_shndx"], int)
        for name in [elf.get_section(symbol["st_shndx"]).name]
        if name.startswith(".podgraft.")
    ]
