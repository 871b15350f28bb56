"""Why a patch is what it is: each changed function with its cause, sizes, outlook and hazards, and both codes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iced_x86 import Formatter, FormatterSyntax

from podgraft_builder.code import is_branch
from podgraft_builder.compare import Changed, Comparison
from podgraft_builder.objects import Function, ObjectFile
from podgraft_builder.outlook import outlook_of
from podgraft_builder.sources import Origins, read_origins, touched_lines
from podgraft_builder.verdict import Hazard, Verdict
from podgraft_bundle.errors import Refusal


@dataclass(frozen=True)
class Row:
    """One changed function. cause: what in the patch made it change; why: the first difference of the objects."""

    object: str
    function: str
    cause: str
    why: str
    old_size: int
    new_size: int
    outlook: str
    hazards: tuple[Hazard, ...]
    old_code: tuple[str, ...]
    new_code: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return what `--json` prints: everything but the code."""
        return {
            "object": self.object,
            "function": self.function,
            "cause": self.cause,
            "why": self.why,
            "old_size": self.old_size,
            "new_size": self.new_size,
            "outlook": self.outlook,
            "hazards": [f"{hazard.state}: {hazard.reason}" for hazard in self.hazards],
        }


@dataclass(frozen=True)
class Explanation:
    """All rows, all hazards, and what ended the build if it did not become a bundle; grounds: why it may be applied."""

    rows: tuple[Row, ...]
    hazards: tuple[Hazard, ...]
    refusal: Refusal | None = None
    grounds: tuple[str, ...] = ()


def explain(comparisons: dict[str, Comparison], verdict: Verdict, patch: Path | None) -> tuple[Row, ...]:
    """Explain every changed function; without a patch file the cause is not told."""
    lines = touched_lines(patch) if patch is not None else None
    rows = []
    for label, comparison in sorted(comparisons.items()):
        if not comparison.changed:
            continue
        old, new = (read_origins(which) if lines else Origins() for which in (comparison.old, comparison.new))
        touched = old.touched(lines or {})
        for name, unit in sorted(comparison.changed.items()):
            outlook, because = outlook_of(comparison.old, unit.old, unit.old_parts)
            rows.append(
                Row(
                    label,
                    name,
                    _cause(unit, old, new, touched) if lines is not None else "",
                    unit.why,
                    _size(unit.old, unit.old_parts),
                    _size(unit.new, unit.new_parts),
                    f"{outlook}: {because}",
                    tuple(hazard for hazard in verdict.hazards if hazard.function == name),
                    listing(comparison.old, (unit.old, *unit.old_parts)),
                    listing(comparison.new, (unit.new, *unit.new_parts)),
                )
            )
    return tuple(rows)


def _cause(unit: Changed, old: Origins, new: Origins, touched: set[str]) -> str:
    """Say what made a function change, as far as source lines and debug information tell."""
    base = unit.name.partition(".")[0]
    split = " (part split)" if base != unit.name or len(unit.old_parts) != len(unit.new_parts) else ""
    if base in touched:
        return f"source{split}"
    inlined = (old.inlined(base) | new.inlined(base)) & touched
    if inlined:
        return f"inlines {', '.join(sorted(inlined))}{split}"
    fresh = new.inlined(base) - old.places.keys()
    if fresh:
        return f"inlines {', '.join(sorted(fresh))}{split}"
    return split.strip(" ()") or "compiler"


def _size(function: Function, parts: tuple[Function, ...]) -> int:
    return function.size + sum(part.size for part in parts)


def listing(which: ObjectFile, functions: tuple[Function, ...]) -> tuple[str, ...]:
    """Return the instructions of functions (nops left out), with the names that their relocations name."""
    formatter = Formatter(FormatterSyntax.GAS)
    formatter.branch_leading_zeros = False
    lines = []
    for function in functions:
        lines.append(f"{function.name}:")
        for step in which.decoded(function).steps:
            names = ", ".join(item.symbol.name or _section(which, item.symbol.section) for item in step.relocations)
            instruction = step.instruction.copy()
            if names and is_branch(instruction):
                lines.append(f"  {formatter.format_mnemonic(instruction)} {names}")
                continue
            if names and instruction.is_ip_rel_memory_operand:
                instruction.memory_displacement = 0  # an offset that the linker will overwrite
            lines.append(f"  {formatter.format(instruction)}" + (f"  # {names}" if names else ""))
    return tuple(lines)


def _section(which: ObjectFile, index: int | None) -> str:
    section = which.sections.get(index) if index is not None else None
    return section.name if section is not None else "-"
