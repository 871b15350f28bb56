""".eh_frame of the new functions, cut out of their objects (LSB Core "Exception Frames")."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from podgraft_builder.objects import Function, ObjectFile, Place, Relocation, Section, place_of

_TABLE = ".gcc_except_table"


@dataclass(frozen=True)
class Entry:
    """One CIE or FDE: where it lies in the section, and for an FDE the offset of its CIE."""

    start: int
    end: int
    cie: int | None


def entries(data: bytes) -> Iterator[Entry]:
    """Walk through .eh_frame; a zero length ends it."""
    at = 0
    while at + 8 <= len(data):
        length, pointer = struct.unpack_from("<II", data, at)
        if length == 0:
            return
        end = at + 4 + length
        yield Entry(at, end, None if pointer == 0 else at + 4 - pointer)
        at = end


def frames_of(which: ObjectFile, wanted: set[int]) -> Iterator[tuple[bytearray, list[tuple[Relocation, Place]]]]:
    """Yield one piece of .eh_frame per section that holds entries for wanted code sections.

    The piece has the CIEs it needs and its own CIE pointers; relocations carry offsets in the piece.
    """
    for section in which.sections.values():
        if section.name == ".eh_frame":
            piece = _cut(section, wanted)
            if piece is not None:
                yield piece


def exception_table(which: ObjectFile, function: Function) -> tuple[int, int, int] | None:
    """Return section, start and size of a function's exception table (LSDA), None when it has none.

    An FDE has two relocations: the code that it is for, and the table (LSB Core "The FDE", augmentation data).
    """
    tables = _exception_tables(which)
    found = tables.get((function.section, function.start))
    if found is None:
        return None
    later = [offset for section, offset in tables.values() if section == found[0] and offset > found[1]]
    return found[0], found[1], min(later, default=which.sections[found[0]].size) - found[1]


@cache
def _exception_tables(which: ObjectFile) -> dict[tuple[int, int], tuple[int, int]]:
    """Return place of a function -> place of its table."""
    found = {}
    for section in which.sections.values():
        if section.name != ".eh_frame" or not any(s.name.startswith(_TABLE) for s in which.sections.values()):
            continue
        for entry in entries(section.data):
            inside = [place_of(r, 0) for r in section.relocations if entry.start <= r.offset < entry.end]
            if entry.cie is not None and len(inside) == 2:
                code, table = inside
                if code.section is not None and table.section is not None:
                    found[code.section, code.offset] = table.section, table.offset
    return found


def _cut(section: Section, wanted: set[int]) -> tuple[bytearray, list[tuple[Relocation, Place]]] | None:
    every = list(entries(section.data))
    by_offset = {r.offset: r for r in section.relocations}
    chosen = [
        e for e in every if e.cie is not None and (r := by_offset.get(e.start + 8)) and r.symbol.section in wanted
    ]
    keep = sorted({e.cie for e in chosen} | {e.start for e in chosen}, key=lambda start: start or 0)
    out, moved = bytearray(), {}
    relocations: list[tuple[Relocation, Place]] = []
    for entry in (e for e in every if e.start in keep):
        moved[entry.start] = len(out)
        start = len(out)
        out += section.data[entry.start : entry.end]
        if entry.cie is not None:
            struct.pack_into("<I", out, start + 4, start + 4 - moved[entry.cie])
        for item in section.relocations:
            if entry.start <= item.offset < entry.end:
                shifted = item._replace(offset=item.offset - entry.start + start)
                relocations.append((shifted, place_of(item, 0)))
    return (out, relocations) if chosen else None
