"""Was the running binary made by the compiler, and with the protection, that the new code is made with?"""

import io
import re

from elftools.elf.elffile import ELFFile

from podgraft_builder.objects import ObjectFile
from podgraft_builder.subject import Subject
from podgraft_bundle.errors import Reason

_PROTECTION = re.compile(r"-f(?:no-)?(?:stack-protector|cf-protection|stack-clash-protection)\S*")
_PRODUCER = re.compile(r"(GNU C|clang version|Debian clang version)\S* ([\d.]+)")


def check_compiler(subject: Subject) -> None:
    """Compare .comment, where compilers sign, or without it what the debug information names; else nothing is known."""
    if subject.running is None or not (subject.comparison.changed or subject.comparison.new_functions):
        return
    ours, theirs = signatures(subject.comparison.new), _split(subject.running.section(".comment"))
    if not theirs:
        ours, theirs = versions(subject.new.producers), versions(subject.running.producers)
    if theirs and ours - theirs:
        detail = f"{subject.label} is made by {_list(ours)}, {subject.running.path} by {_list(theirs)}"
        subject.verdict.refuse(Reason.COMPILER_DIFFERS, detail)


def check_hardening(subject: Subject) -> None:
    """Compare the protection that both builds of an object ask for: stack protector, CET, stack clash."""
    old, new = _protection(subject.old.producers), _protection(subject.new.producers)
    for flag in sorted(old ^ new):
        how = "is gone" if flag in old else "comes"
        subject.verdict.refuse(Reason.HARDENING_DIFFERS, f"{subject.label}: {flag} {how} with the patch")
    notes = (_section(which, ".note.gnu.property") for which in (subject.comparison.old, subject.comparison.new))
    if len(set(notes)) > 1 and old == new:
        detail = f"{subject.label}: .note.gnu.property (CET) changes"
        subject.verdict.refuse(Reason.HARDENING_DIFFERS, detail)


def signatures(which: ObjectFile) -> set[str]:
    """Return the compilers that signed an object."""
    return _split(_section(which, ".comment"))


def versions(producers: set[str]) -> set[str]:
    """Return name and version of compilers, without language and flags (DW_AT_producer)."""
    return {f"{found[1]} {found[2]}" for text in producers if (found := _PRODUCER.match(text))}


def _section(which: ObjectFile, name: str) -> bytes:
    section = ELFFile(io.BytesIO(which.data)).get_section_by_name(name)
    return section.data() if section is not None else b""


def _split(data: bytes) -> set[str]:
    return {text.decode(errors="replace") for text in data.split(b"\0") if text}


def _protection(producers: set[str]) -> set[str]:
    """Return the flags as the producer names them (DW_AT_producer, with -grecord-gcc-switches)."""
    return {flag for producer in producers for flag in _PROTECTION.findall(producer)}


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nobody who signed"
