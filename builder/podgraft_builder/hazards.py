"""Refuse what compares well and would still be wrong in a running process; each hazard with its own reason."""

from collections.abc import Callable

from iced_x86 import Register

from podgraft_builder.clobbers import clobbered
from podgraft_builder.compare import Changed, Comparison
from podgraft_builder.dwarf import Debug, read_debug
from podgraft_builder.objects import IFUNC, Function, ObjectFile, place_of
from podgraft_builder.running import RunningBinary
from podgraft_bundle.errors import Reason, Refusal


def check_hazards(
    comparisons: dict[str, Comparison], others: Callable[[], list[ObjectFile]], running: RunningBinary | None
) -> None:
    """Check all changed objects; others reads the objects of the binary that did not change. Raises Refusal."""
    for comparison in comparisons.values():
        if comparison.changed:
            _check_ifunc(comparison)
            _check_removed_callers(comparison)
            old, new = read_debug(comparison.old.data), read_debug(comparison.new.data)
            _check_language(comparison, old, new)
            _check_layouts(comparison, old, new)
            _check_signatures(
                comparison, old, new, lambda: [*others(), *(c.old for c in comparisons.values())], running
            )


def _check_ifunc(comparison: Comparison) -> None:
    for unit in comparison.changed.values():
        if IFUNC in {unit.old.kind, unit.new.kind}:
            raise Refusal(Reason.IFUNC_RESOLVER, f"{comparison.new.label}: {unit.name} changes; it has run already")


def _check_language(comparison: Comparison, old: Debug, new: Debug) -> None:
    if old.assembler or new.assembler:
        raise Refusal(Reason.HAND_WRITTEN_ASM, f"{comparison.new.label} was written in assembler and changes")
    if not (old.present and new.present):
        raise Refusal(
            Reason.UNSUPPORTED_CHANGE,
            f"{comparison.new.label} has no debug information: changed types cannot be seen",
            "let the build keep -g (podgraft adds it), do not strip objects",
        )


def _check_layouts(comparison: Comparison, old: Debug, new: Debug) -> None:
    for name, layout in sorted(old.layouts.items()):
        after = new.layouts.get(name)
        how = layout.differs(after) if after is not None else None
        if how is not None:
            raise Refusal(Reason.CHANGED_LAYOUT, f"{comparison.new.label}: {name}: {how}")


def _check_signatures(
    comparison: Comparison,
    old: Debug,
    new: Debug,
    objects: Callable[[], list[ObjectFile]],
    running: RunningBinary | None,
) -> None:
    """A changed signature is safe where all callers were compiled with it: not through pointers, not from outside."""
    for unit in comparison.changed.values():
        before, after = old.signatures.get(unit.name), new.signatures.get(unit.name)
        if before is None or after is None or _compatible(before, after):
            continue
        what = f"{comparison.new.label}: {unit.name}: {before} -> {after}"
        if running is not None and not unit.old.local and unit.old.name in running.exported:
            raise Refusal(Reason.CHANGED_SIGNATURE, f"{what}; it is exported to shared objects")
        where = _pointer_taken(comparison, unit, objects())
        if where is not None:
            raise Refusal(Reason.CHANGED_SIGNATURE, f"{what}; unpatched code has its address ({where})")


def _compatible(before: str, after: str) -> bool:
    """Old callers ignore what a function returns in a register that returned nothing; an aggregate needs a place."""
    same_arguments = before.partition("(")[2] == after.partition("(")[2]
    aggregate = after.partition("(")[0].startswith(("struct ", "union ", "class "))
    return before == after or (before.startswith("void (") and same_arguments and not aggregate)


def _pointer_taken(comparison: Comparison, unit: Changed, objects: list[ObjectFile]) -> str | None:
    for which in objects:
        if which is comparison.old:
            where = address_taken(which, unit.old, without=set(comparison.changed))
        elif unit.old.local:
            continue
        else:
            where = _named(which, unit.old.name)
        if where is not None:
            return f"{which.label}: {where}"
    return None


def address_taken(which: ObjectFile, function: Function, without: set[str]) -> str | None:
    """Return which section takes the address of a function, functions in `without` left out."""
    for section in which.sections.values():
        if section.name == ".eh_frame" or any(f.name in without for f in which.functions_in(section.index)):
            continue
        calls = which.branch_fields(section.index)
        for item, place in which.places_of(section.index):
            if (place.section, place.offset) == (function.section, function.start) and item.offset not in calls:
                return section.name
    return None


def _named(which: ObjectFile, name: str) -> str | None:
    for section in which.sections.values():
        if any(item.symbol.name == name and item.symbol.section is None for item in section.relocations):
            calls = which.branch_fields(section.index)
            if any(item.symbol.name == name and item.offset not in calls for item in section.relocations):
                return section.name
    return None


def _check_removed_callers(comparison: Comparison) -> None:
    """A function that the new source lacks may still run, and was compiled for the old callee alone."""
    removed = [f for f in comparison.old.functions.values() if f.name not in comparison.new.functions]
    for caller in dict.fromkeys(removed):
        for step in comparison.old.decoded(caller).steps:
            for item in step.relocations:
                place = place_of(item, step.instruction.next_ip - item.offset)
                callee = comparison.old.function_at(place.section, place.offset) if place.section else None
                unit = comparison.changed.get(callee.name) if callee is not None else None
                if unit is not None and item.offset in comparison.old.branch_fields(caller.section):
                    _compare_clobbers(comparison, caller, unit)


def may_run(comparison: Comparison, function: Function) -> bool:
    """Say whether a removed function can still be entered: known outside its object, or by its address."""
    parent = comparison.old.functions.get(function.name.partition(".cold")[0], function)
    return not parent.local or address_taken(comparison.old, parent, set()) is not None


def _compare_clobbers(comparison: Comparison, caller: Function, unit: Changed) -> None:
    more = clobbered(comparison.new, unit.new) - clobbered(comparison.old, unit.old)
    if more and may_run(comparison, caller):
        names = ", ".join(
            sorted(name.lower() for name, value in vars(Register).items() if type(value) is int and value in more)
        )
        raise Refusal(
            Reason.IPA_RA_HAZARD,
            f"{comparison.new.label}: {caller.name} is gone from the source, may still run, and calls {unit.name},"
            f" which now changes {names}",
        )
