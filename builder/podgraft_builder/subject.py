"""One changed object as the hazard checks see it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from podgraft_builder.compare import Changed, Comparison
from podgraft_builder.dwarf import Debug
from podgraft_builder.objects import Function, ObjectFile
from podgraft_builder.running import RunningBinary
from podgraft_builder.verdict import Verdict


@dataclass(frozen=True)
class Subject:
    """Both builds of an object with their debug information, and where to put what is found.

    others reads all other objects of the binary, old builds; running is None where only objects are compared.
    """

    comparison: Comparison
    old: Debug
    new: Debug
    others: Callable[[], list[ObjectFile]]
    running: RunningBinary | None
    verdict: Verdict

    @property
    def label(self) -> str:
        """Return the name of the object."""
        return self.comparison.new.label

    @property
    def units(self) -> list[Changed]:
        """Return the changed functions, by name."""
        return [unit for _, unit in sorted(self.comparison.changed.items())]

    def signatures(self, unit: Changed) -> tuple[str | None, str | None]:
        """Return the signatures of a function before and after; debug information knows one of its names alone."""
        return _signature(self.old, unit.old), _signature(self.new, unit.new)


def _signature(debug: Debug, function: Function) -> str | None:
    return next((debug.signatures[name] for name in function.aliases if name in debug.signatures), None)


def named_references(which: ObjectFile, functions: tuple[Function, ...]) -> Counter[str]:
    """Count the undefined names that functions refer to, by call or otherwise."""
    return Counter(
        item.symbol.name
        for function in functions
        for item in which.relocations_of(function)
        if item.symbol.section is None
    )
