"""Names that lose their definition: a fresh link takes them from elsewhere, running code goes on with the old one."""

from collections.abc import Callable

from podgraft_builder.compare import Comparison
from podgraft_builder.objects import WEAK, ObjectFile
from podgraft_builder.symtab import Symbol
from podgraft_builder.verdict import Verdict
from podgraft_bundle.errors import Reason


def check_lost_names(
    comparisons: dict[str, Comparison],
    lost: list[ObjectFile],
    unchanged: Callable[[], list[ObjectFile]],
    verdict: Verdict,
) -> None:
    """Refuse where an object that is still linked uses a name that one of the old objects defined and none does now.

    Then a library has it, or a weak definition takes its place. lost are the objects that are not linked any more.
    """
    gone = {name: which.label for which in lost for name in _defined(which)}
    for label, comparison in comparisons.items():
        gone |= dict.fromkeys(_defined(comparison.old) - {s.name for s in comparison.new.symbols if _is_here(s)}, label)
    if not gone:
        return
    for which in (*(c.new for c in comparisons.values()), *unchanged()):
        for name in sorted(gone.keys() & {s.name for s in which.symbols if not s.local and not _is_strong(s)}):
            detail = f"{name} is not in {gone[name]} any more, and {which.label} uses it from elsewhere"
            verdict.refuse(Reason.MOVED_BETWEEN_FILES, detail, function=name)


def _defined(which: ObjectFile) -> set[str]:
    return {symbol.name for symbol in which.symbols if not symbol.local and _is_strong(symbol)}


def _is_here(symbol: Symbol) -> bool:
    return symbol.section is not None


def _is_strong(symbol: Symbol) -> bool:
    return symbol.section is not None and symbol.bind not in WEAK
