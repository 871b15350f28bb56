"""Hazards of what a changed function does: it never ends, it is jumped back into, it holds locks."""

import re

from iced_x86 import FlowControl

from podgraft_builder.compare import Changed
from podgraft_builder.escapes import lets_labels_out
from podgraft_builder.labels import keeps_label, leads_into
from podgraft_builder.objects import Function, ObjectFile
from podgraft_builder.outlook import Outlook, outlook_of
from podgraft_builder.subject import Subject, named_references
from podgraft_bundle.errors import Reason

# Functions that keep a place in their caller's code or stack for later (setjmp(3), getcontext(3)).
JUMPS_BACK = frozenset(
    {
        *("setjmp", "_setjmp", "sigsetjmp", "__sigsetjmp", "getcontext", "makecontext", "swapcontext"),
        *("__sigsetjmp_chk", "savectx"),
    }
)
# What GCC (actor, destroy) and clang make of a coroutine; GCC's destroy calls the actor and does nothing itself.
_COROUTINE = re.compile(r"\.(actor|resume|destroy|cleanup)$")
_KINDS = ("pthread_mutex_", "pthread_rwlock_", "pthread_spin_", "mtx_")
_ACTIONS = ("lock", "trylock", "timedlock", "clocklock", "unlock", "rdlock", "wrlock", "tryrdlock", "trywrlock")
LOCKS = frozenset({kind + action for kind in _KINDS for action in _ACTIONS}) | {
    *("sem_wait", "sem_trywait", "sem_timedwait", "sem_post", "flockfile", "funlockfile", "lockf", "lockf64"),
}


def check_flow(subject: Subject) -> None:
    """Look at each changed function."""
    _check_tables(subject)
    for unit in subject.units:
        _check_quiescence(subject, unit)
        _check_jumps_back(subject, unit)
        _check_suspends(subject, unit)
        _check_labels(subject, unit)
        _check_locks(subject, unit)


def _check_quiescence(subject: Subject, unit: Changed) -> None:
    outlook, why = outlook_of(subject.comparison.old, unit.old, unit.old_parts)
    if outlook is Outlook.NEVER:
        detail = f"{subject.label}: {unit.name} {why}: threads in it stay on old code"
        subject.verdict.refuse(Reason.NEVER_QUIESCENT, detail, function=unit.name)
    elif outlook is Outlook.LATE:
        detail = f"{subject.label}: {unit.name} {why}: threads in it may stay on old code for long"
        subject.verdict.warn(Reason.NEVER_QUIESCENT, detail, function=unit.name)


def _check_jumps_back(subject: Subject, unit: Changed) -> None:
    comparison = subject.comparison
    for which, functions in (
        (comparison.old, (unit.old, *unit.old_parts)),
        (comparison.new, (unit.new, *unit.new_parts)),
    ):
        names = JUMPS_BACK & set(named_references(which, functions))
        if names:
            detail = (
                f"{subject.label}: {unit.name} calls {min(names)}: a stack that is not looked at may lead back into it"
            )
            subject.verdict.refuse(Reason.SETJMP_CALLER, detail, function=unit.name)
            return


def _check_suspends(subject: Subject, unit: Changed) -> None:
    """A suspended call of a coroutine (C++20) lies in memory, and goes on in the middle of the new code."""
    found = _COROUTINE.search(unit.name)
    if found is not None:
        detail = f"{subject.label}: {unit.name} is a coroutine: a call that is suspended would go on in the new code"
        layout = "" if found[1] == "actor" else "; nothing tells what clang keeps in its frame"
        subject.verdict.refuse(Reason.SETJMP_CALLER, detail + layout, function=unit.name, final=bool(layout))


def _check_labels(subject: Subject, unit: Changed) -> None:
    """New code must never jump to a label of the old that was saved somewhere."""
    comparison = subject.comparison
    for which, functions in (
        (comparison.old, (unit.old, *unit.old_parts)),
        (comparison.new, (unit.new, *unit.new_parts)),
    ):
        keeps = any(keeps_label(which, function) for function in functions)
        if keeps and any(_jumps_indirectly(which, function) for function in functions):
            detail = f"{subject.label}: {unit.name} takes the address of a label and jumps to one that it has kept"
            subject.verdict.refuse(Reason.COMPUTED_GOTO, detail, function=unit.name)
            return
        if lets_labels_out(which, functions):
            detail = f"{subject.label}: {unit.name} keeps what its table of labels holds, or passes it on"
            subject.verdict.refuse(Reason.COMPUTED_GOTO, detail, function=unit.name)
            return


def _check_tables(subject: Subject) -> None:
    """A table of labels that lives on leads new code into the old."""
    comparison = subject.comparison
    for old in dict.fromkeys(comparison.old_of.values()):
        constant = comparison.old.sections[old.section or 0].constant
        if not (constant and old.local) and leads_into(comparison.old, old, set(comparison.changed)):
            detail = f"{subject.label}: variable {old.name} holds labels of a changed function and lives on"
            subject.verdict.refuse(Reason.COMPUTED_GOTO, detail)


def _jumps_indirectly(which: ObjectFile, function: Function) -> bool:
    return any(s.instruction.flow_control == FlowControl.INDIRECT_BRANCH for s in which.decoded(function).steps)


def _check_locks(subject: Subject, unit: Changed) -> None:
    comparison = subject.comparison
    before = named_references(comparison.old, (unit.old, *unit.old_parts))
    after = named_references(comparison.new, (unit.new, *unit.new_parts))
    differ = [f"{n} {before[n]} -> {after[n]}" for n in sorted(LOCKS) if before[n] != after[n]]
    if differ:
        detail = f"{subject.label}: {unit.name} has other calls of {', '.join(differ)}"
        subject.verdict.warn(Reason.LOCK_IMBALANCE, detail, function=unit.name)
