# SPDX-License-Identifier: GPL-2.0-only
"""The site ladder: where a function can be entered by a jump that catches no thread in its middle (design 3.2).

The replaced bytes lie inside one original instruction, or in that and padding behind it that nobody executes. So a
thread is resumed at their first byte or not among them at all. Rungs, the first that fits:

* `jmp-rel32`: five bytes.
* `jmp-rel8-hole`: two bytes, to padding in reach that holds a `jmp rel32`.
* `jmp-rel8-chain`: the same by way of smaller holes, each with a `jmp rel8`.
* `jmp-punned`: two to four bytes of a `jmp rel32` whose high bytes are the bytes that follow; it leads to a trampoline.

A site may stand behind instructions that the stub can undo, and behind NOPs. **NOPs at an entry**
(`-fpatchable-function-entry`) are never replaced together: a thread that was preempted between two of them would be
resumed in the middle of the jump. They are stepped over like a push that needs no undoing; NOPs before the entry are
padding, so they serve as a hole. A NOP of five bytes is an instruction like any other.

**No page border** may lie among the replaced bytes: two pages are not switched in one step. Where it would, less of the
instruction is replaced (a punned jump keeps the bytes beyond the border), or another instruction is taken.

**Branches back to the site** (`Site.reentrant`), or to what stands before it, bring a thread to the stub in the middle
of a call. It gets the answer that it got at the entry, for these reasons:

1. It is in old code, so it got "old" (or entered before there was a site, with a generation that means "old").
2. Its generation cannot change in between: a thread migrates only when old code, stubs and holes are not on its stack.
   That covers the program counter in a signal frame, also if it is exactly the function's start: for such a function
   the forbidden range begins one byte early (prepare.py), so a handler that sleeps at a wake-up point finds it.
3. What "old" means does not change for it: the gate of a patch is moved only by the next apply or revert, and then to
   numbers beyond all that were given out.
4. Finalizing lets the site lead straight to the new function only when every thread has migrated, that is, was seen
   outside of old code with a generation that never enters it again. A revert first brings the stub back; a thread that
   has migrated back is "old" until the site is gone.

In the middle of a call flags and red zone may be in use; the stub saves both there. The argument needs every migration
to look at the stack: a *declared point* must not be reached while such a function is on it, and a call of it that is
suspended on another stack (docs/limitations.md) would be led astray, not only delayed. So a site that no branch leads
back to is preferred, whatever its rung.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from iced_x86 import Code, Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register

from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.code.jumptables import table_targets
from podgraft_engine.code.prologue import Undo, prologue
from podgraft_engine.code.puns import NEAR_JUMP, Pun, puns
from podgraft_engine.target.layout import PAGE

SHORT_JUMP: Final = 2
MAX_HOPS: Final = 4
_CALLS: Final = (Code.CALL_REL32_64, Code.CALL_RM64)
_LEAVES: Final = (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH, FlowControl.RETURN)


@dataclass(frozen=True)
class Site:
    """A place for the jump: address and length of the replaced bytes, the displaced instruction, what to undo.

    holes: where the jump goes on, in order; the last one holds a `jmp rel32`. reentrant: the function may branch back
    to the site, or it is not known that it does not. doors: where threads go that do not take the new function, while
    all migrate to it and when they leave it again: to another patch, or None, to the original code. dropped: there is
    no new function, all threads go to the second door.
    """

    function: str
    address: int
    length: int
    rung: str
    displaced: Instruction
    undo: Undo
    holes: tuple[int, ...] = ()
    pun: Pun | None = None
    reentrant: bool = False
    doors: tuple[int | None, int | None] = (None, None)
    dropped: bool = False

    def claims(self) -> list[tuple[int, int]]:
        """Return address and size of all bytes that this site changes or relies on."""
        hops = [(hole, SHORT_JUMP) for hole in self.holes[:-1]]
        return [
            (self.address, self.pun.size if self.pun else self.length),
            *hops,
            *((h, NEAR_JUMP) for h in self.holes[-1:]),
        ]


def pages_of_claims(sites: Iterable[Site]) -> set[int]:
    """Return the pages that sites change or rely on."""
    claims = [claim for site in sites for claim in site.claims()]
    return {page for at, size in claims for page in (at // PAGE * PAGE, (at + size - 1) // PAGE * PAGE)}


class Surroundings(Protocol):
    """What choosing a site needs to know of the process."""

    @property
    def shadow_stack(self) -> bool:
        """Tell whether the processor compares return addresses with what calls have pushed."""

    def holes(self, origin: int, size: int) -> Iterator[int]:
        """Yield free places of `size` bytes that a `jmp rel8` ending at `origin` reaches."""

    def padding(self, end: int) -> int:
        """Return how many free bytes of padding follow the end of a function."""

    def is_free(self, start: int, size: int) -> bool:
        """Tell whether no other site uses these bytes."""

    def has_room(self, pun: Pun) -> bool:
        """Tell whether a page is free where a punned jump leads."""

    def read(self, address: int, size: int) -> bytes | None:
        """Return bytes of the target, None where it is not mapped."""


@dataclass(frozen=True)
class _Candidate:
    """An instruction that may be displaced. room: bytes that may be replaced, all in its page; code: from it on."""

    instruction: Instruction
    undo: Undo
    room: int
    code: bytes
    reentrant: bool

    def site(self, name: str, rung: str, length: int, holes: tuple[int, ...] = (), *, pun: Pun | None = None) -> Site:
        """Take this place."""
        at = self.instruction.ip
        return Site(name, at, length, rung, self.instruction, self.undo, holes, pun, self.reentrant)


def choose_site(name: str, start: int, code: bytes, parts: list[tuple[int, bytes]], surroundings: Surroundings) -> Site:
    """Return the first site that fits.

    Args:
        name: the function, for messages.
        start: its address.
        code: its bytes.
        parts: address and bytes of its cold parts (they may branch back).
        surroundings: holes and room near the function.

    Raises:
        Refusal: NO_PATCH_SITE with what was tried.
    """
    instructions = list(Decoder(64, code, ip=start))
    everything = [*instructions, *(i for address, data in parts for i in Decoder(64, data, ip=address))]
    bodies = [(start, start + len(code)), *((address, address + len(data)) for address, data in parts)]
    tables = table_targets(everything, bodies, surroundings.read)
    targets = _branch_targets(everything) | (tables or set())
    found = []
    for instruction, undo in prologue(instructions):
        if not displaceable(instruction, calls=not surroundings.shadow_stack):
            continue
        reentrant = any(start <= t <= instruction.ip for t in targets)
        reentrant |= tables is None and not _is_prologue(instruction)
        room = _room(instruction, start + len(code), surroundings)
        if not any(instruction.ip < t < instruction.ip + room for t in targets):
            found.append(_Candidate(instruction, undo, room, code[instruction.ip - start :], reentrant))
    for reentrant in (False, True):
        for rung in RUNGS.values():
            for candidate in found:
                site = rung(name, candidate, surroundings) if candidate.reentrant == reentrant else None
                if site is not None:
                    return site
    seen = "; ".join(str(i) for i in instructions[:3])
    raise Refusal(Reason.NO_PATCH_SITE, f"{name} at {start:#x}: no rung of the site ladder fits ({seen})")


def same_site(
    name: str, start: int, code: bytes, place: tuple[int, int], has_room: Callable[[Pun], bool]
) -> tuple[Instruction, Undo, Pun | None]:
    """Say of a site that was chosen before what is displaced, what stands before it and what pun leads away from it.

    Args:
        name: the function, for messages.
        start: its address, or where the decoding may begin.
        code: its original bytes.
        place: address of the site and number of the replaced bytes.
        has_room: tells whether a page is free where a punned jump leads.

    Raises:
        Refusal: NO_PATCH_SITE.
    """
    at, length = place
    for instruction, undo in prologue(list(Decoder(64, code, ip=start))):
        if instruction.ip == at:
            rooms = (pun for pun in puns(at, code[at - start :], min(length, NEAR_JUMP - 1)) if has_room(pun))
            return instruction, undo, next(rooms, None)
    raise Refusal(Reason.NO_PATCH_SITE, f"{name} at {start:#x}: the site of the patch below is not found again")


def _room(instruction: Instruction, end: int, surroundings: Surroundings) -> int:
    """Return how many bytes may be replaced: the instruction, padding behind it, but nothing on the next page."""
    room = instruction.len
    if instruction.next_ip == end and instruction.flow_control in _LEAVES:
        room += surroundings.padding(end)
    return min(room, PAGE - instruction.ip % PAGE)


def _near(name: str, candidate: _Candidate, surroundings: Surroundings) -> Site | None:
    at = candidate.instruction.ip
    if candidate.room < NEAR_JUMP or not surroundings.is_free(at, NEAR_JUMP):
        return None
    return candidate.site(name, "jmp-rel32", NEAR_JUMP)


def _by_hole(name: str, candidate: _Candidate, surroundings: Surroundings) -> Site | None:
    at = candidate.instruction.ip
    if candidate.room < SHORT_JUMP or not surroundings.is_free(at, SHORT_JUMP):
        return None
    # One in the same page means one page less to switch.
    holes = sorted(
        _apart(surroundings.holes(at + SHORT_JUMP, NEAR_JUMP), NEAR_JUMP, [(at, SHORT_JUMP)]),
        key=lambda hole: hole // PAGE != at // PAGE,
    )
    return candidate.site(name, "jmp-rel8-hole", SHORT_JUMP, (holes[0],)) if holes else None


def _by_chain(name: str, candidate: _Candidate, surroundings: Surroundings) -> Site | None:
    at = candidate.instruction.ip
    if candidate.room < SHORT_JUMP or not surroundings.is_free(at, SHORT_JUMP):
        return None
    ways: list[tuple[int, ...]] = [(at,)]
    seen = {at}
    for _ in range(MAX_HOPS):
        longer = []
        for way in ways:
            mine = [(hop, SHORT_JUMP) for hop in way]
            for hole in _apart(surroundings.holes(way[-1] + SHORT_JUMP, NEAR_JUMP), NEAR_JUMP, mine):
                return candidate.site(name, "jmp-rel8-chain", SHORT_JUMP, (*way[1:], hole))
            for hop in _apart(surroundings.holes(way[-1] + SHORT_JUMP, SHORT_JUMP), SHORT_JUMP, mine):
                if hop not in seen:
                    seen.add(hop)
                    longer.append((*way, hop))
        ways = longer
    return None


def _by_pun(name: str, candidate: _Candidate, surroundings: Surroundings) -> Site | None:
    at, length = candidate.instruction.ip, min(candidate.room, NEAR_JUMP - 1)
    for pun in puns(at, candidate.code, length):
        if surroundings.is_free(at, pun.size) and surroundings.has_room(pun):
            return candidate.site(name, "jmp-punned", length, pun=pun)
    return None


# The names that reports show, in the order in which they are tried.
RUNGS: Final[dict[str, Callable[[str, _Candidate, Surroundings], Site | None]]] = {
    "jmp-rel32": _near,
    "jmp-rel8-hole": _by_hole,
    "jmp-rel8-chain": _by_chain,
    "jmp-punned": _by_pun,
}


def _apart(places: Iterator[int], size: int, others: list[tuple[int, int]]) -> Iterator[int]:
    """Leave out the places that overlap with others (address, size)."""
    return (p for p in places if all(p + size <= at or at + length <= p for at, length in others))


def displaceable(instruction: Instruction, *, calls: bool) -> bool:
    """Tell whether the stub can do what the instruction does: execute it, or for a call push its return address."""
    if instruction.code == Code.ENDBR64 or instruction.is_jcx_short or instruction.is_loop or instruction.is_loopcc:
        return False
    if instruction.code in _CALLS:
        return calls and Register.RSP not in {instruction.memory_base, instruction.op0_register}
    return instruction.flow_control in (FlowControl.NEXT, FlowControl.CONDITIONAL_BRANCH, *_LEAVES)


def _is_prologue(instruction: Instruction) -> bool:
    """Tell whether no jump table can lead here: prologues run once."""
    if instruction.mnemonic == Mnemonic.PUSH:
        return True
    return instruction.mnemonic == Mnemonic.SUB and instruction.op0_register == Register.RSP


def _branch_targets(instructions: list[Instruction]) -> set[int]:
    """Return where direct branches lead; a recursive call is no branch, it enters anew."""
    kinds = (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CONDITIONAL_BRANCH)
    return {
        i.near_branch_target for i in instructions if i.flow_control in kinds and i.op0_kind == OpKind.NEAR_BRANCH64
    }
