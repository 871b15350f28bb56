"""Callers that were compiled for the old function and are not replaced: by pointer, from outside, or gone."""

import re
from collections.abc import Iterator

from iced_x86 import Register

from podgraft_builder.clobbers import clobbered
from podgraft_builder.compare import Changed, Comparison
from podgraft_builder.objects import Function, ObjectFile, Place, base_name, place_of
from podgraft_builder.subject import Subject
from podgraft_bundle.errors import Reason, Refusal

_OUTLINED = re.compile(r"(\.(?:_omp_\w*fn|_loopfn)\.)\d+$")  # what GCC cuts out to run in other threads
_CLONE = re.compile(r"\.(isra|constprop|part)\.")  # what GCC makes of a function for some of its callers
# Types that are returned in rax or xmm0, by the names that GCC gives them in debug information.
_IN_REGISTER = re.compile(r"_Bool|bool|float|double|char|(un)?signed char|((short|long|long long) )?(unsigned )?int")


def check_signatures(subject: Subject) -> None:
    """A changed signature is safe where all callers were compiled with it: not through pointers, not from outside."""
    for unit in subject.units:
        before, after = subject.signatures(unit)
        if before is not None and after is not None and not _compatible(before, after):
            where = _unpatched_use(subject, unit)
            if where is not None:
                detail = f"{subject.label}: {unit.name}: {before} -> {after}; {where}"
                subject.verdict.refuse(Reason.CHANGED_SIGNATURE, detail, function=unit.name)
        if _returns_now(subject, unit):
            where = _unpatched_use(subject, unit)
            if where is not None:
                detail = f"{subject.label}: {unit.name} never returned and does now; {where}"
                subject.verdict.refuse(Reason.CHANGED_NORETURN, detail, function=unit.name)


def check_outlined(subject: Subject) -> None:
    """Functions that a compiler cut out of others are given to other threads, and take what those have on their stack.

    A thread that has changed over already may be given an old function's data by one that has not.
    """
    comparison = subject.comparison
    for unit in subject.units:
        found = _OUTLINED.search(unit.name)
        if found is not None:
            first = unit.name[: found.start()] + found[1]
            before, after = (
                [n for n in sorted(which.functions) if n.startswith(first) and ".cold" not in n]
                for which in (comparison.old, comparison.new)
            )
            if before != after:
                detail = f"{subject.label}: there are {len(before)} functions {first}N before and {len(after)} after"
                detail += "; they are counted: put new ones behind the old"
                subject.verdict.refuse(Reason.CHANGED_ALIAS, detail, function=unit.name)
        untyped = found is not None and None in subject.signatures(unit)
        if untyped or (unit.old.local and base_name(unit.name) in subject.old.nested | subject.new.nested):
            giver = _changed_giver(comparison, unit)
            if giver is not None:
                detail = f"{subject.label}: {unit.name} changes and {giver}, whose frame it uses, has given it away"
                subject.verdict.refuse(Reason.CHANGED_SIGNATURE, detail, function=unit.name)


def _changed_giver(comparison: Comparison, unit: Changed) -> str | None:
    """Return a function that changes or goes, and that takes the address of another function."""
    old = comparison.old
    replaced = [f for c in comparison.changed.values() for f in (c.old, *c.old_parts)]
    for giver in (*replaced, *removed_functions(comparison)):
        calls = old.branch_fields(giver.section)
        for step in old.decoded(giver).steps:
            for item in step.relocations:
                place = place_of(item, step.instruction.next_ip - item.offset)
                if item.offset not in calls and means(place, old, unit.old, old):
                    return giver.name
    return None


def _unpatched_use(subject: Subject, unit: Changed) -> str | None:
    running = subject.running
    if running is not None and not unit.old.local and running.exported & unit.old.plain:
        return "it is exported to shared objects"
    where = _pointer_taken(subject.comparison, unit, [*subject.others(), subject.comparison.old])
    return f"old code has taken its address ({where})" if where is not None else None


def _compatible(before: str, after: str) -> bool:
    """Old callers ignore what a function returns in a register that returned nothing.

    All else needs a place from the caller, or (long double) has to be taken away by it (psABI x86-64, 3.2.3).
    """
    same_arguments = before.partition("(")[2] == after.partition("(")[2]
    result = after.partition(" (")[0]
    in_register = result.endswith("*") or result.startswith("enum ") or _IN_REGISTER.fullmatch(result)
    return before == after or (before.startswith("void (") and same_arguments and bool(in_register))


def _pointer_taken(comparison: Comparison, unit: Changed, objects: list[ObjectFile]) -> str | None:
    for which in objects:
        if which is comparison.old:
            where = address_taken(which, unit.old)  # code that is replaced has run, and may have stored it
        elif unit.old.local:
            continue
        else:
            where = next((w for name in unit.old.aliases if (w := _named(which, name))), None)
        if where is not None:
            return f"{which.label}: {where}"
    return None


def address_taken(which: ObjectFile, function: Function, without: frozenset[int] = frozenset()) -> str | None:
    """Return which section takes the address of a function, those with the numbers in `without` left out."""
    for section in which.sections.values():
        if section.name in {".eh_frame", "__patchable_function_entries"} or section.index in without:
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


def branches(which: ObjectFile, function: Function) -> Iterator[Place]:
    """Yield where the calls and jumps of a function lead that leave it."""
    calls = which.branch_fields(function.section)
    for step in which.decoded(function).steps:
        for item in step.relocations:
            if item.offset in calls:
                yield place_of(item, step.instruction.next_ip - item.offset)


def means(place: Place, which: ObjectFile, target: Function, home: ObjectFile) -> bool:
    """Say whether a place that an object names is the entry of a function, which lies in its home."""
    if which is home:
        return (place.section, place.offset) == (target.section, target.start)
    return place.section is None and not target.local and place.symbol.name in target.aliases


def removed_functions(comparison: Comparison) -> list[Function]:
    """Return the old functions, with their cold parts, that the new object lacks and nothing replaces.

    A copy that other objects may have as well (weak) is not gone.
    """
    replaced = {part for unit in comparison.changed.values() for part in unit.old_parts}
    return [
        function
        for function in dict.fromkeys(comparison.old.functions.values())
        if not (function.weak or function in replaced or comparison.new.functions.keys() & set(function.aliases))
    ]


def check_gone_callers(subjects: list[Subject]) -> None:
    """A function that the new source lacks and that may still run must not call one that it does not fit any more."""
    for subject in subjects:
        for unit in subject.units:
            reason, how = _misfit(subject, unit)
            for other in subjects if reason is not None else ():
                which = other.comparison.old
                for caller in removed_functions(other.comparison):
                    calls = any(
                        means(place, which, unit.old, subject.comparison.old) for place in branches(which, caller)
                    )
                    if reason is not None and calls and may_run(other.comparison, caller):
                        detail = f"{subject.label}: {unit.name}{how}; {caller.name}, which is gone from the source,"
                        subject.verdict.refuse(reason, f"{detail} calls it and may still run", function=unit.name)


def _misfit(subject: Subject, unit: Changed) -> tuple[Reason | None, str]:
    """Say how a new function differs for callers that know the old one.

    Clones have no signature: what they take, and what they are made for, is between them and callers made with them.
    """
    if _returns_now(subject, unit):
        return Reason.CHANGED_NORETURN, " never returned and does now"
    before, after = subject.signatures(unit)
    if _CLONE.search(unit.name):
        before, after = f"{unit.name} as it was", "another clone"
    if before is None or after is None or _compatible(before, after):
        return None, ""
    return Reason.CHANGED_SIGNATURE, f": {before} -> {after}"


def _returns_now(subject: Subject, unit: Changed) -> bool:
    return bool(subject.old.noreturn & set(unit.old.aliases)) and not subject.new.noreturn & set(unit.new.aliases)


def may_run(comparison: Comparison, function: Function) -> bool:
    """Say whether a removed function can still be entered: from outside its object, by its address, or from another."""
    old = comparison.old
    gone = removed_functions(comparison)
    pending, seen = [function], set[Function]()
    while pending:
        current = pending.pop()
        parent = old.functions.get(old.parent_of(current), current)
        if parent in seen:
            continue
        seen.add(parent)
        if not parent.local or address_taken(old, parent) is not None:
            return True
        pending += [c for c in gone if any(means(place, old, parent, old) for place in branches(old, c))]
    return False


def check_removed_callers(subject: Subject) -> None:
    """A function that the new source lacks may still run, and was compiled for the old callee alone.

    Every callee that goes on counts, also an unchanged one: what it may write to depends on what it calls.
    Raises Refusal.
    """
    comparison = subject.comparison
    for caller in removed_functions(comparison):
        for place in branches(comparison.old, caller):
            callee = comparison.old.function_at(place.section, place.offset) if place.section else None
            new = comparison.new.functions.get(callee.name) if callee is not None else None
            if callee is not None and new is not None:
                _compare_clobbers(comparison, caller, callee, new)


def _compare_clobbers(comparison: Comparison, caller: Function, old: Function, new: Function) -> None:
    more = clobbered(comparison.new, new, doubt=True) - clobbered(comparison.old, old)
    if more and may_run(comparison, caller):
        names = ", ".join(
            sorted(name.lower() for name, value in vars(Register).items() if type(value) is int and value in more)
        )
        raise Refusal(
            Reason.IPA_RA_HAZARD,
            f"{comparison.new.label}: {caller.name} is gone from the source, may still run, and calls {old.name},"
            f" which now changes {names}",
        )
