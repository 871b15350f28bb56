"""Code of the running binary that calls a changed function and that the source does not have."""

import re
from bisect import bisect_right

from podgraft_builder.compare import Changed
from podgraft_builder.objects import FUNCTION_KINDS
from podgraft_builder.running import Named, RunningBinary
from podgraft_builder.subject import Subject
from podgraft_bundle.errors import Reason

_BRANCH = re.compile(rb"[\xe8\xe9](?=.{4})|\x0f[\x80-\x8f](?=.{4})", re.DOTALL)  # call, jmp, jcc with rel32


def check_strangers(subject: Subject) -> None:
    """A local function is called from its object alone; what else calls it was built from another source.

    A function whose signature changes must have no caller that no object of the build has.
    """
    if subject.running is None:
        return
    for unit in subject.units:
        own = {name for f in subject.comparison.old.functions.values() for name in f.aliases}
        before, after = subject.signatures(unit)
        if not unit.old.local and before == after:
            continue
        for caller in _callers(subject.running, _address(subject, unit)):
            if caller.name in own or (not unit.old.local and _known(subject, caller.name)):
                continue
            detail = (
                f"{caller.name} calls {unit.name} ({subject.label}) in {subject.running.path} and not in the source"
            )
            subject.verdict.refuse(Reason.UNKNOWN_CALLER, detail, function=unit.name)


def _address(subject: Subject, unit: Changed) -> int | None:
    """Return where a function is in the running binary, None where several have its name."""
    running = subject.running
    found = running.by_name.get(unit.old.name, []) if running is not None else []
    if unit.old.local:
        found = [n for n in found if n.file == subject.comparison.old.source]
    else:
        found = [n for n in found if n.shared] or found
    places = {n.address for n in found if n.kind in FUNCTION_KINDS}
    return places.pop() if len(places) == 1 else None


def _known(subject: Subject, name: str) -> bool:
    return any(name in which.functions for which in subject.others())


def _callers(running: RunningBinary, address: int | None) -> list[Named]:
    """Return the functions of the running binary with a branch to an address."""
    if address is None:
        return []
    functions = sorted(
        (n for n in running.symbols if n.kind in FUNCTION_KINDS and n.size), key=lambda n: (n.address, n.size)
    )
    starts = [n.address for n in functions]
    found = {}
    for at in _branches_to(running, address):
        inside = functions[max(bisect_right(starts, at) - 1, 0)]
        if inside.address <= at < inside.address + inside.size:
            found[inside.address] = inside
    return list(found.values())


def _branches_to(running: RunningBinary, address: int) -> list[int]:
    """Return where the bytes of .text read as a branch to an address, whether or not an instruction begins there."""
    start, data = running.text
    found = []
    for match in _BRANCH.finditer(data):
        field = match.end()
        distance = int.from_bytes(data[field : field + 4], "little", signed=True)
        if start + field + 4 + distance == address:
            found.append(start + match.start())
    return found
