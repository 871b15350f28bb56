"""Labels inside functions that data or code keeps (GCC manual, "Labels as Values"): computed goto."""

from podgraft_builder.code import is_branch
from podgraft_builder.objects import Function, ObjectFile, place_of
from podgraft_builder.symtab import Symbol


def leads_into(which: ObjectFile, symbol: Symbol, names: set[str]) -> bool:
    """Say whether a variable holds, itself or by constants it points to, a label inside one of the named functions."""
    return _leads_into(which, symbol.section or 0, symbol.value, symbol.size, names, set())


def _leads_into(  # noqa: PLR0917 (one piece of data, and what was seen)
    which: ObjectFile, section: int, start: int, size: int, names: set[str], seen: set[tuple[int, int]]
) -> bool:
    if (section, start) in seen:
        return False
    seen.add((section, start))
    for item, place in which.places_of(section):
        target = which.sections.get(place.section) if place.section is not None else None
        if target is None or not start <= item.offset < start + size:
            continue
        if target.executable:
            function = which.function_at(target.index, place.offset)
            if function is not None and function.start != place.offset and function.name.partition(".cold")[0] in names:
                return True
        inner = which.variable_at(place) if target.constant and not target.executable else None
        if inner is not None and _leads_into(which, target.index, inner.value, inner.size, names, seen):
            return True
    return False


def keeps_label(which: ObjectFile, function: Function) -> bool:
    """Say whether code of a function takes the address of a place inside itself, its own start left out."""
    end = function.start + function.size
    for step in which.decoded(function).steps:
        instruction = step.instruction
        own = not step.relocations and instruction.is_ip_rel_memory_operand
        if own and function.start < instruction.memory_displacement < end:
            return True
        for item in () if is_branch(instruction) else step.relocations:
            place = place_of(item, instruction.next_ip - item.offset)
            if place.section == function.section and function.start < place.offset < end:
                return True
    return False
