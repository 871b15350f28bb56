"""Code that belongs to no function with a size, and data without one: only assembler has it."""

from podgraft_builder.code import decode
from podgraft_builder.objects import ObjectFile, Section

Piece = tuple[int, int]


def loose_code(which: ObjectFile, section: Section) -> list[Piece]:
    """Return start and end of what lies between the functions of a section, padding left out."""
    ends = sorted((f.start, f.start + f.size) for f in which.functions_in(section.index) if f.size)
    gaps, at = [], 0
    for start, end in [*ends, (section.size, section.size)]:
        if start > at:
            gaps.append((at, start))
        at = max(at, end)
    return [piece for start, end in gaps if (piece := _without_padding(section, start, end)) is not None]


def _without_padding(section: Section, start: int, end: int) -> Piece | None:
    inside = [r for r in section.relocations if start <= r.offset < end]
    steps = decode(section.data[start:end], start, inside).steps
    return (steps[0].instruction.ip, steps[-1].instruction.next_ip) if steps else None


def unsized_data(which: ObjectFile) -> dict[str, str]:
    """Return section -> global name of data whose size no symbol tells."""
    return {
        which.sections[symbol.section].name: symbol.name
        for symbol in which.symbols
        if symbol.section in which.sections
        and symbol.kind in {"STT_NOTYPE", "STT_OBJECT"}
        and not (symbol.local or symbol.size or which.sections[symbol.section].executable)
    }


def numbers(which: ObjectFile) -> dict[str, int]:
    """Return the global symbols that are no places but numbers."""
    return {s.name: s.value for s in which.symbols if s.special == "SHN_ABS" and not s.local}
