"""Why a patch may be applied: what the checks have found to be safe, in sentences for who has to decide."""

from collections.abc import Iterator

from podgraft_builder.callers import branches, means
from podgraft_builder.compare import Changed
from podgraft_builder.objects import ObjectFile
from podgraft_builder.subject import Subject


def grounds_of(subjects: list[Subject]) -> Iterator[str]:
    """Tell why each kind of change is safe; for patches that no check refuses."""
    changed = [subject for subject in subjects if subject.comparison.changed]
    for subject in changed:
        for unit in subject.units:
            before, after = subject.signatures(unit)
            if before != after and before is not None and after is not None:
                yield f"{subject.label}: {unit.name}: {before} -> {after}: {_callers(unit, subject, subjects)}"
        functions = [f.name for f in subject.comparison.new_functions.values() if not f.weak]
        names = sorted({*functions, *(symbol.name for symbol in subject.comparison.new_variables)})
        if names:  # inline functions of C++ are not among them: other code may have copies
            yield f"{subject.label}: new: {', '.join(names)}: no code that runs knows them"
    yield _layouts(changed)
    objects = f"{len(subjects)} {'object differs' if len(subjects) == 1 else 'objects differ'}"
    replaced = sum(len(subject.units) for subject in changed)
    yield f"{objects}; all functions whose code differs are replaced ({replaced}), the others stay as they are"


def _layouts(changed: list[Subject]) -> str:
    layouts = {name for subject in changed for name in subject.old.layouts.keys() & subject.new.layouts.keys()}
    variables = sum(len(subject.old.variables.keys() & subject.new.variables.keys()) for subject in changed)
    return f"{len(layouts)} types and {variables} variables of the changed objects have the layout that they had"


def _callers(unit: Changed, subject: Subject, subjects: list[Subject]) -> str:
    """Tell who calls a function whose signature changes: only code that was compiled with the new one."""
    replaced: set[str] = set()
    same: set[str] = set()
    for other in [subject] if unit.new.local else subjects:
        for name in _direct_callers(other.comparison.new, unit, subject):
            (replaced if name in other.comparison.changed else same).add(name)
    if not unit.new.local:
        compared = [other.comparison.old for other in subjects]
        for which in subject.others():
            if which not in compared:
                same.update(_direct_callers(which, unit, subject))
    told = [f"{'static' if unit.new.local else 'not exported'}, and nothing but calls leads to it"]
    if replaced:
        told.append(f"callers {', '.join(sorted(replaced))} are replaced")
    if same:
        told.append(f"callers {', '.join(sorted(same))} are the same with the new declaration")
    return "; ".join(told)


def _direct_callers(which: ObjectFile, unit: Changed, subject: Subject) -> Iterator[str]:
    """Yield the functions of an object that call or jump to a function."""
    home = subject.comparison.new
    for function in dict.fromkeys(which.functions.values()):
        name = which.parent_of(function)
        if which is home and name == unit.name:
            continue
        if any(means(place, which, unit.new, home) for place in branches(which, function)):
            yield name
