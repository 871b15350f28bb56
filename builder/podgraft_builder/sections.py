"""Hazards of what lies in sections of its own: constructors that have run, sets that the linker has put together."""

import re

from podgraft_builder.compare import START_STOP
from podgraft_builder.objects import ObjectFile, Section
from podgraft_builder.subject import Subject
from podgraft_bundle.errors import Reason

_RUN_AT_START = tuple(name for name in START_STOP if "fini" not in name and name != ".dtors")
# Sections that compilers make; ld defines __start_NAME and __stop_NAME for names that are C identifiers.
_USUAL = re.compile(
    r"\.(text|rodata|data|bss|tdata|tbss|eh_frame|gcc_except_table|init|fini|preinit_array|ctors|dtors|note|comment"
    r"|lrodata|ldata|lbss|tm_clone_table|sdata|sbss|gnu)(\W|_array|$)"
)


def check_sections(subject: Subject) -> None:
    """Sets must be as they were, and no function may change that runs only at start."""
    comparison = subject.comparison
    names = {s.name for which in (comparison.old, comparison.new) for s in which.sections.values() if _in_set(s)}
    for name in sorted(names):
        if not comparison.same_section(name):
            subject.verdict.refuse(Reason.LINKER_SET, f"{subject.label}: section {name} changes or grows")
    ran = _constructors(comparison.old)
    for unit in subject.units:
        if unit.name in ran:
            detail = f"{subject.label}: {unit.name} runs at start, which is over"
            subject.verdict.refuse(Reason.CHANGED_CONSTRUCTOR, detail, function=unit.name)


def _in_set(section: Section) -> bool:
    return not section.executable and not _USUAL.match(section.name)


def _constructors(which: ObjectFile) -> set[str]:
    """Return the functions that the start-up code calls through tables."""
    found = set()
    for section in which.sections.values():
        if section.name.startswith(_RUN_AT_START):
            for _, place in which.places_of(section.index):
                function = which.function_at(place.section, place.offset) if place.section is not None else None
                if function is not None:
                    found.add(function.name)
    return found
