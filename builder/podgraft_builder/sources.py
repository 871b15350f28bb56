"""Which functions a patch touches in the source, and what was inlined where (DWARF 5, sections 2.14 and 3.3.8)."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE

from podgraft_builder.dwarf import declaration_of, linkage_of
from podgraft_builder.objects import ObjectFile

_HUNK = re.compile(r"^@@ -(\d+)(?:,\d+)? \+")
Touched = dict[str, set[int]]


@dataclass
class Origins:
    """File and line of each function by its linkage name, and its entries in the debug information."""

    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    bodies: dict[str, list[DIE]] = field(default_factory=dict)

    def inlined(self, name: str) -> set[str]:
        """Return the names of what is inlined into a function."""
        return {inner for die in self.bodies.get(name, []) for inner in _inlined(die)}

    def touched(self, lines: Touched) -> set[str]:
        """Return the functions between whose first line and that of the next a patch changes something."""
        starts: dict[str, list[int]] = {}
        for file, start in sorted(set(self.places.values())):
            starts.setdefault(file, []).append(start)
        hit = {
            (file, starts[file][bisect_right(starts[file], line) - 1])
            for file, numbers in lines.items()
            for line in numbers
            if file in starts and line >= starts[file][0]
        }
        return {name for name, place in self.places.items() if place in hit}


def touched_lines(patch: Path) -> Touched:
    """Return base name of a file -> lines of the old file that a patch deletes or puts something behind."""
    found: Touched = {}
    name, line, replaces = "", 0, False
    for text in patch.read_bytes().decode(errors="replace").splitlines():
        hunk = _HUNK.match(text)
        if text.startswith("--- "):
            name = text[4:].split("\t")[0].strip().rpartition("/")[2]
        elif hunk:
            line = int(hunk[1])
        elif text.startswith("-"):
            found.setdefault(name, set()).add(line)
            line, replaces = line + 1, True
            continue
        elif text.startswith("+") and not text.startswith("+++ "):
            if not replaces:
                found.setdefault(name, set()).add(line - 1)
            continue
        elif text.startswith(" "):
            line += 1
        replaces = False
    return found


def read_origins(which: ObjectFile) -> Origins:
    """Read where the functions of an object come from."""
    origins = Origins()
    for unit in which.debug.units:
        files = _files(unit)
        for die in _functions(unit.get_top_DIE()):
            declared = declaration_of(die)
            name, attributes = linkage_of(declared), declared.attributes
            file, line = attributes.get("DW_AT_decl_file"), attributes.get("DW_AT_decl_line")
            if name and file is not None and line is not None:
                origins.places.setdefault(name, (files.get(file.value, ""), line.value))
                origins.bodies.setdefault(name, []).append(die)
    return origins


def _functions(parent: DIE) -> Iterator[DIE]:
    for die in parent.iter_children():
        if die.tag == "DW_TAG_subprogram":
            yield die
        elif die.tag in {"DW_TAG_namespace", "DW_TAG_class_type", "DW_TAG_structure_type"}:
            yield from _functions(die)


def _inlined(parent: DIE) -> set[str]:
    found = set()
    for die in parent.iter_children():
        if die.tag == "DW_TAG_inlined_subroutine":
            found.add(linkage_of(declaration_of(die)))
        if die.has_children:
            found |= _inlined(die)
    return found


def _files(unit: CompileUnit) -> dict[int, str]:
    """Return number -> base name of the files of a unit; version 5 counts from 0 (DWARF 5, 6.2.4)."""
    program = unit.dwarfinfo.line_program_for_CU(unit)
    if program is None:
        return {}
    first = 0 if program.header.version >= 5 else 1
    return {
        first + number: entry.name.decode(errors="replace").rpartition("/")[2]
        for number, entry in enumerate(program.header.file_entry)
    }
