"""Which variable of the old object a new one continues: numbers of statics change hands, and may come and go."""

import re

from podgraft_builder.dwarf import NOBODYS, Static, read_statics
from podgraft_builder.objects import ObjectFile, base_name
from podgraft_builder.symtab import Symbol
from podgraft_bundle.errors import Reason, Refusal

# <local-name> with its <discriminator>, if there is one (Itanium C++ ABI, 5.1.6)
_LOCAL_NAME = re.compile(r"(_ZZ.+?)(?:_\d|__\d+_)?")


def may_continue(old: Symbol, new: Symbol) -> bool:
    """Say whether a variable may be the one that was: of one kind, and either in a function (numbered) or not."""
    return base_name(old.name) == base_name(new.name) and old.kind == new.kind and _numbered(old) == _numbered(new)


def same_owner(before: ObjectFile, old: Symbol, after: ObjectFile, new: Symbol) -> bool:
    """Say whether one function declares both; of several of a name the line of declaration tells."""
    if not _numbered(old):
        return True
    a, b = _static(before, old), _static(after, new)
    if NOBODYS in {a, b}:
        return a == b
    twins = any([s.owner for s in read_statics(which).values()].count(a.owner) > 1 for which in (before, after))
    return a.owner == b.owner and (not twins or a.line == b.line)


def check_counted(before: ObjectFile, after: ObjectFile) -> None:
    """Refuse where a static of C++ may be another one than its name says: those of one name are counted.

    Raises:
        Refusal(UNRESOLVED_REFERENCE).
    """
    old, new = _counted(before), _counted(after)
    for base in sorted(old.keys() & new.keys()):
        if old[base] != new[base]:
            raise Refusal(
                Reason.UNRESOLVED_REFERENCE,
                f"{after.label}: {len(old[base])} static variables in one function are named {base} before and"
                f" {len(new[base])} after: which is which cannot be told",
            )


def correlate(before: ObjectFile, after: ObjectFile, old_of: dict[Symbol, Symbol]) -> None:
    """Map what is left of the data symbols: by name, and numbered ones by the function that declares them.

    old_of: new variable -> the old one that it continues, as far as the code tells; the rest is added.

    Raises:
        Refusal(UNRESOLVED_REFERENCE).
    """
    old = {s.name: s for items in before.variables.values() for s in items}
    new = [s for items in after.variables.values() for s in items]
    taken = set(old_of.values())
    for symbol in new:
        match = old.get(symbol.name)
        if symbol not in old_of and match is not None and not _numbered(symbol) and may_continue(match, symbol):
            old_of[symbol] = match
    left = [s for s in new if s not in old_of and not after.sections[s.section or 0].constant and _numbered(s)]
    for name in sorted({base_name(s.name) for s in left}):
        fresh = [s for s in left if base_name(s.name) == name]
        candidates = [o for o in old.values() if o not in taken and base_name(o.name) == name != o.name]
        if candidates:
            old_of.update(_by_owner(name, before, candidates, after, fresh))


def _by_owner(
    name: str, before: ObjectFile, old: list[Symbol], after: ObjectFile, new: list[Symbol]
) -> dict[Symbol, Symbol]:
    """Find the old variables that numbered statics continue: by the function that declares them, or the line."""
    found = {}
    for owner in sorted({_static(after, s).owner for s in new}):
        fresh = [s for s in new if _static(after, s).owner == owner]
        same = [s for s in old if _static(before, s).owner == owner]
        if not owner or len(fresh) > 1 or len(same) > 1:
            found.update(_by_line(owner or name, before, same, after, fresh))
        elif same:
            found[fresh[0]] = same[0]
    return found


def _by_line(
    owner: str, before: ObjectFile, old: list[Symbol], after: ObjectFile, new: list[Symbol]
) -> dict[Symbol, Symbol]:
    """Pair statics of one name in one function by their lines; where one came or went, lines prove nothing."""
    lines = {_static(before, s).line: s for s in old}
    now = {_static(after, s).line: s for s in new}
    if not len(lines) == len(old) == len(new) or 0 in lines or lines.keys() != now.keys():
        raise Refusal(
            Reason.UNRESOLVED_REFERENCE,
            f"{after.label}: {owner} has static variables of one name: which is which cannot be told",
        )
    return {now[line]: symbol for line, symbol in lines.items()}


def _counted(which: ObjectFile) -> dict[str, set[str]]:
    """Return the static variables inside functions of C++, by the name without its number."""
    found: dict[str, set[str]] = {}
    for index, items in which.variables.items():
        for item in items if not which.sections[index].constant else ():
            named = _LOCAL_NAME.fullmatch(item.name)
            if named is not None:
                found.setdefault(named[1], set()).add(item.name)
    return found


def _static(which: ObjectFile, symbol: Symbol) -> Static:
    return read_statics(which).get((symbol.section or 0, symbol.value), NOBODYS)


def _numbered(symbol: Symbol) -> bool:
    return base_name(symbol.name) != symbol.name
