"""Lambdas: their names are numbers, and what they capture is a layout; objects that hold one may live on.

Debug information does not tell the number of a lambda, so the lambdas of each function are compared in their order.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from elftools.dwarf.die import DIE

from podgraft_builder.dwarf import Layout, declaration_of, layout_of, linkage_of, name_of, number_of
from podgraft_builder.objects import ObjectFile
from podgraft_builder.subject import Subject
from podgraft_bundle.errors import Reason

# <closure-type-name> ::= Ul <lambda-sig> E [ <nonnegative number> ] _ (Itanium C++ ABI, 5.1.8)
_NAMED_BY_CLOSURE = re.compile(r"Ul.*E\d*_")
_RECORDS = ("DW_TAG_structure_type", "DW_TAG_class_type")
_SCOPES = frozenset({"DW_TAG_namespace", "DW_TAG_subprogram", "DW_TAG_lexical_block", *_RECORDS})


@dataclass(frozen=True)
class Closure:
    """Where a lambda stands, and what it captures."""

    line: int
    column: int
    layout: Layout


def check_closures(subject: Subject) -> None:
    """A stored lambda is called by its number and with its captures: both must be those that it was stored with."""
    statics = [item.name for items in subject.comparison.old.variables.values() for item in items]
    if not any(_NAMED_BY_CLOSURE.search(name) for name in (*(unit.name for unit in subject.units), *statics)):
        return
    old, new = read_closures(subject.comparison.old), read_closures(subject.comparison.new)
    for owner in sorted(old.keys() & new.keys()):
        before, after = old[owner], new[owner]
        if _renumbered(before, after):
            detail = f"{subject.label}: {owner or 'the file'} has {len(before)} lambdas before and {len(after)} after"
            subject.verdict.refuse(Reason.CHANGED_ALIAS, f"{detail}; they are counted: put new ones behind the old")
            continue
        for one, other in zip(before, after, strict=False):
            how = one.layout.differs(other.layout)
            if how is not None:
                detail = f"{subject.label}: the lambda in line {one.line} captures something else: {how}"
                subject.verdict.refuse(Reason.CHANGED_LAYOUT, detail)


def _renumbered(before: list[Closure], after: list[Closure]) -> bool:
    """Say whether a lambda may have another number; lines that a patch leaves alone keep theirs."""
    old, new = [c.line for c in before], [c.line for c in after]
    shared = min(len(old), len(new))
    if len(old) != len(new):  # which of those in one line is new cannot be told
        more = {*old[shared:], *new[shared:]}
        return old[:shared] != new[:shared] or not more.isdisjoint(old[:shared])
    return any(a != b and (a in new or b in old) for a, b in zip(old, new, strict=True))


def read_closures(which: ObjectFile) -> dict[str, list[Closure]]:
    """Return the lambdas of each function of an object, in the order of the source."""
    found: dict[str, list[Closure]] = {}
    for unit in which.debug.units:
        for owner, die in _lambdas(unit.get_top_DIE(), ""):
            place = number_of(die, "DW_AT_decl_line"), number_of(die, "DW_AT_decl_column")
            found.setdefault(owner, []).append(Closure(*place, layout_of(die)))
    return {owner: sorted(closures, key=lambda c: (c.line, c.column)) for owner, closures in found.items()}


def _lambdas(parent: DIE, owner: str) -> Iterator[tuple[str, DIE]]:
    for die in parent.iter_children():
        if die.tag in _RECORDS and not name_of(die) and _is_called(die):
            yield owner, die
        if die.tag in _SCOPES and die.has_children:
            function = die.tag == "DW_TAG_subprogram"
            yield from _lambdas(die, linkage_of(declaration_of(die)) if function else owner)


def _is_called(record: DIE) -> bool:
    """A type without a name that has functions is that of a lambda."""
    return any(child.tag == "DW_TAG_subprogram" for child in record.iter_children())
