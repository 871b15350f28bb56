"""Is a name of the new build the same thing as in the running binary? Aliases, folded and weak functions, moves."""

from podgraft_builder.callers import may_run
from podgraft_builder.compare import Comparison
from podgraft_builder.objects import FUNCTION_KINDS, WEAK, Function, base_name
from podgraft_builder.subject import Subject
from podgraft_bundle.errors import Reason
from podgraft_bundle.manifest import ARENA

_COMPILERS_OWN = (".localalias", ".cold", ".constprop.", ".isra.", ".part.", ".lto_priv.")


def check_names(subject: Subject) -> None:
    """One function must stay one function, under all its names."""
    comparison = subject.comparison
    for function in dict.fromkeys(comparison.old.functions.values()):
        after = {comparison.new.functions[n] for n in _names(function) if n in comparison.new.functions}
        differs = comparison.changed.keys() | comparison.new_functions.keys()
        if len(after) > 1 and differs & set(_names(function)):
            _folded(subject, function, "one function in the old build and several in the new")
        if function.name in comparison.changed or after:
            _compare_aliases(subject, function, after)
    for function in dict.fromkeys(comparison.new.functions.values()):
        before = {comparison.old.functions[n] for n in _names(function) if n in comparison.old.functions}
        if len(before) > 1:
            _folded(subject, function, "several functions in the old build and one in the new")


def _names(function: Function) -> tuple[str, ...]:
    return tuple(n for n in function.aliases if not any(own in n for own in _COMPILERS_OWN))


def _folded(subject: Subject, function: Function, how: str) -> None:
    detail = f"{subject.label}: {' and '.join(_names(function))} are {how}"
    subject.verdict.refuse(Reason.FOLDED_FUNCTIONS, detail, function=function.name)


def _compare_aliases(subject: Subject, old: Function, after: set[Function]) -> None:
    comparison = subject.comparison
    if len(after) != 1:
        return
    [new] = after
    gained = set(_names(new)) - set(_names(old)) - set(comparison.old.functions)
    lost = set(_names(old)) - set(_names(new)) - set(comparison.new.functions)
    if gained or (lost and old.name in comparison.changed) or old.name in lost:
        words = [f"gains the name {name}" for name in sorted(gained)] + [f"loses {name}" for name in sorted(lost)]
        detail = f"{subject.label}: {old.name} {' and '.join(words)}"
        subject.verdict.refuse(Reason.CHANGED_ALIAS, detail, function=old.name)


def check_running_names(subject: Subject) -> None:
    """The linker may have folded functions, or taken another object's definition of a weak one."""
    running = subject.running
    if running is None:
        return
    for unit in subject.units:
        for named in running.by_name.get(unit.old.name, []):
            if named.kind not in FUNCTION_KINDS or (unit.old.local and named.file != subject.comparison.old.source):
                continue
            others = {n.name for n in running.names_at.get(named.address, []) if n.kind in FUNCTION_KINDS}
            more = sorted(others - unit.old.plain)
            if more:
                detail = f"{unit.name} and {' and '.join(more)} are one function in {running.path}"
                subject.verdict.refuse(Reason.FOLDED_FUNCTIONS, detail, function=unit.name)
            if unit.old.weak and not named.weak and not named.local:
                detail = f"{subject.label}: {unit.name} is weak; the running binary uses another definition"
                subject.verdict.refuse(Reason.WEAK_SYMBOL, detail, function=unit.name)
        if unit.old.weak and running.preemptible(unit.old.name):
            detail = (
                f"{unit.name} is exported and weak: where a module that is loaded earlier has a copy, that one runs"
            )
            subject.verdict.warn(Reason.WEAK_SYMBOL, detail, function=unit.name)
        _check_weak_uses(subject, unit.new)


def _check_weak_uses(subject: Subject, function: Function) -> None:
    """A weak name that nobody defines is 0 in the running binary; looked up later it would be something else."""
    running = subject.running
    for item in subject.comparison.new.relocations_of(function):
        symbol = item.symbol
        if running is None or symbol.section is not None or symbol.bind != "STB_WEAK" or symbol.name == ARENA:
            continue
        imported = {name for name, _ in running.slots.values()}
        if symbol.name not in running.by_name and symbol.name not in imported:
            detail = f"{subject.label}: {function.name} uses the weak name {symbol.name}, which nobody defines"
            subject.verdict.refuse(Reason.WEAK_SYMBOL, detail, function=function.name)


def check_new_definitions(subject: Subject) -> None:
    """A new global name must be new to the program: existing code would go on with the definition that it has."""
    running, comparison = subject.running, subject.comparison
    if running is None:
        return
    imported = {name for name, _ in running.slots.values()}
    functions = [f.name for f in comparison.new_functions.values() if not f.local and not f.weak]
    variables = [s.name for s in comparison.new_variables if s.bind == "STB_GLOBAL"]
    known = {name for f in comparison.old.functions.values() for name in f.aliases}
    for name in sorted(set(functions + variables) - known):
        defined = [n for n in running.by_name.get(name, []) if n.shared]
        if any(n.weak for n in defined) or (not defined and name in imported):
            detail = f"{subject.label}: a definition of {name} comes; the running binary has bound the name already"
            subject.verdict.refuse(Reason.WEAK_SYMBOL, detail, function=name)
        elif defined:
            detail = f"{name} is new in {subject.label}, but the running binary has it already, from another file"
            subject.verdict.refuse(Reason.MOVED_BETWEEN_FILES, detail, function=name)


def check_moves(subjects: list[Subject]) -> None:
    """What goes from one file and comes in another has moved: its value, and pointers to it, would stay behind."""
    for source in subjects:
        gone_variables, gone_functions = _gone(source.comparison)
        for target in subjects:
            if source is target:
                continue
            came = {base_name(s.name) for s in target.comparison.new_variables if s.bind not in WEAK}
            moved = sorted(gone_variables & came)
            moved += sorted(gone_functions & {f.name for f in target.comparison.new_functions.values() if not f.weak})
            for name in moved:
                detail = f"{name} moves from {source.label} to {target.label}"
                target.verdict.refuse(Reason.MOVED_BETWEEN_FILES, detail, function=name)


def _gone(comparison: Comparison) -> tuple[set[str], set[str]]:
    """Return the variables and the functions, as far as they may still run, that the new object lacks."""
    kept = set(comparison.old_of.values())
    variables = {
        base_name(symbol.name)
        for items in comparison.old.variables.values()
        for symbol in items
        if symbol not in kept and not comparison.old.sections[symbol.section or 0].constant
    }
    here = set(comparison.new.functions)
    functions = [f for f in dict.fromkeys(comparison.old.functions.values()) if not here & set(f.aliases)]
    return variables, {f.name for f in functions if ".cold" not in f.name and may_run(comparison, f)}
