"""Does the patch also change another module that may be in the same process? A bundle replaces code of one alone."""

import re
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from podgraft_builder.compare import Comparison
from podgraft_builder.objects import ObjectFile, is_program
from podgraft_builder.records import Input, Record, inputs_of
from podgraft_builder.verdict import Verdict
from podgraft_bundle.errors import Reason, Refusal

Modules = dict[Path, list[Input]]
_LIBRARY = re.compile(r"lib.+\.so(\.|$)")


def other_modules(records: list[Record], binary: Path, tree: Path) -> Modules:
    """Return the objects of what may be in one process with the binary: libraries, and programs that load it."""
    links = {item.output: item for item in records if item.kind == "link" and item.output != binary.resolve()}
    others = [output for output in sorted(links) if output.is_file() and _is_elf(output)]
    libraries = [output for output in others if not _is_program(output)]
    if _is_program(binary):
        others = _loaded_by(binary, libraries)
    else:
        others = [o for o in others if o in libraries or binary in _loaded_by(o, [*libraries, binary])]
    return {output: inputs_of(links[output], tree, records, []) for output in others}


def _loaded_by(program: Path, libraries: list[Path]) -> list[Path]:
    """Return what the loader brings into a program (gABI, "Shared Object Dependencies"), and what may be a plugin.

    A library that has a library's name is loaded by those who need it. All others may be loaded by their path.
    """
    names: dict[str, Path] = {}
    pending = [program]
    for library in libraries:
        called = _dynamic(library, "DT_SONAME") or [library.name]
        names[called[0]] = library
        if not _LIBRARY.match(called[0]):
            pending.append(library)
    found = set(pending)
    while pending:
        for name in _dynamic(pending.pop(), "DT_NEEDED"):
            library = names.get(name.rpartition("/")[2], program)
            if library not in found:
                found.add(library)
                pending.append(library)
    return [library for library in libraries if library in found]


def _dynamic(path: Path, tag: str) -> list[str]:
    """Return the strings of one kind in the dynamic section."""
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".dynamic")
        if not isinstance(section, DynamicSection):
            return []
        field = {"DT_NEEDED": "needed", "DT_SONAME": "soname"}[tag]
        return [str(getattr(item, field)) for item in section.iter_tags(tag)]


def check_modules(before: Modules, after: Modules, tree: Path, verdict: Verdict) -> None:
    """Refuse where code of another module changes."""
    for output, old in before.items():
        new = {item.label(tree): item.data for item in after.get(output, old)}
        for item in old:
            data = new.get(item.label(tree), item.data)
            if data != item.data and _differs(item.label(tree), item.data, data):
                name = output.relative_to(tree) if output.is_relative_to(tree) else output
                detail = f"{item.label(tree)} of {name} changes as well"
                verdict.refuse(Reason.OTHER_MODULE_CHANGED, detail)
                break


def _differs(label: str, old: bytes, new: bytes) -> bool:
    try:
        comparison = Comparison(ObjectFile(label, old), ObjectFile(label, new)).run()
    except Refusal:
        return True
    return bool(comparison.changed or comparison.data or comparison.new_functions)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _is_program(path: Path) -> bool:
    if not _is_elf(path):
        return False
    with path.open("rb") as file:
        return is_program(ELFFile(file))
