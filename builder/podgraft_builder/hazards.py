"""Refuse what compares well and would still be wrong in a running process; each hazard with its own reason."""

from collections.abc import Callable

from podgraft_builder.callers import check_gone_callers, check_outlined, check_removed_callers, check_signatures
from podgraft_builder.closures import check_closures
from podgraft_builder.compare import Comparison
from podgraft_builder.dwarf import read_debug
from podgraft_builder.flow import check_flow
from podgraft_builder.given import check_given
from podgraft_builder.identity import check_moves, check_names, check_new_definitions, check_running_names
from podgraft_builder.objects import IFUNC, ObjectFile
from podgraft_builder.running import RunningBinary
from podgraft_builder.sections import check_sections
from podgraft_builder.strangers import check_strangers
from podgraft_builder.subject import Subject
from podgraft_builder.toolchain import check_compiler, check_hardening
from podgraft_builder.verdict import Verdict
from podgraft_bundle.errors import Reason, Refusal


def check_hazards(
    comparisons: dict[str, Comparison],
    others: Callable[[], list[ObjectFile]],
    running: RunningBinary | None,
    verdict: Verdict,
) -> list[Subject]:
    """Check all changed objects, put what is found into the verdict, and return what was looked at.

    others reads the objects of the binary that did not change.
    """
    subjects = []
    for comparison in comparisons.values():
        rest = [c.old for c in comparisons.values() if c is not comparison]
        subject = Subject(
            comparison,
            read_debug(comparison.old),
            read_debug(comparison.new),
            lambda rest=rest: [*others(), *rest],  # type: ignore[misc]
            running,
            verdict,
        )
        subjects.append(subject)
        _check_data(subject)
        for check in _EVERY:
            check(subject)
        if comparison.changed:
            for check in _CHANGED:
                verdict.collect(lambda check=check, subject=subject: check(subject))  # type: ignore[misc]
    check_moves(subjects)
    check_gone_callers(subjects)
    for subject in subjects:
        check_given(subject)
    return subjects


def _check_data(subject: Subject) -> None:
    for item in subject.comparison.data:
        subject.verdict.refuse(item.reason, item.detail, final=not item.kept)


def _check_ifunc(subject: Subject) -> None:
    """Nobody runs the resolver of an ifunc but the loader, once, at start."""
    changed = [unit.name for unit in subject.units if IFUNC in {unit.old.kind, unit.new.kind}]
    for name in changed:
        detail = f"{subject.label}: {name} changes; it has run already"
        subject.verdict.refuse(Reason.IFUNC_RESOLVER, detail, function=name)
    for function in subject.comparison.new_functions.values():
        if function.kind == IFUNC:
            detail = f"{subject.label}: {function.name} is new, and which code it is would have been chosen at start"
            subject.verdict.refuse(Reason.IFUNC_RESOLVER, detail, function=function.name)


def _check_language(subject: Subject) -> None:
    if subject.old.assembler or subject.new.assembler:
        raise Refusal(Reason.HAND_WRITTEN_ASM, f"{subject.label} was written in assembler and changes")
    if not (subject.old.present and subject.new.present):
        raise Refusal(
            Reason.UNSUPPORTED_CHANGE,
            f"{subject.label} has no debug information: changed types cannot be seen",
            "let the build keep -g (podgraft adds it), do not strip objects",
        )


def _check_layouts(subject: Subject) -> None:
    for name, layout in sorted(subject.old.layouts.items()):
        after = subject.new.layouts.get(name)
        how = layout.differs(after) if after is not None else None
        if how is not None:
            raise Refusal(Reason.CHANGED_LAYOUT, f"{subject.label}: {name}: {how}")
    for name, before in sorted(subject.old.variables.items()):
        now = subject.new.variables.get(name, before)
        if now != before:
            raise Refusal(Reason.CHANGED_LAYOUT, f"{subject.label}: variable {name}: {before} -> {now}")


_EVERY = (_check_ifunc, check_sections, check_names, check_new_definitions, check_compiler, check_hardening)
_CHANGED = (
    check_removed_callers,
    _check_language,
    _check_layouts,
    check_closures,
    check_signatures,
    check_outlined,
    check_running_names,
    check_strangers,
    check_flow,
)
