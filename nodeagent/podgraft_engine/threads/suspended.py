# SPDX-License-Identifier: GPL-2.0-only
"""Calls that are suspended on stacks which no thread is on now: ucontext, jump buffers, fibers of one's own making.

Memory is read for return addresses into forbidden code, while the program runs. Most of what is found was left behind
by calls that have returned long ago. A stack that will be gone back to has its stack pointer stored somewhere, below
the word that was found: from there it is unwound until that word is passed. What cannot be unwound counts as a call.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Final

from podgraft_bundle.errors import DeadlineError, Reason
from podgraft_bundle.protocol import Event, Waiting
from podgraft_engine.code.switching import Switching
from podgraft_engine.patched.state import CodeRange
from podgraft_engine.target.ehframe import RSP
from podgraft_engine.target.layout import PAGE
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Mapping, Process
from podgraft_engine.target.search import words_with
from podgraft_engine.threads.saved import SLOT, SavedStacks
from podgraft_engine.threads.stack import Forbidden, Frame, RowLookup, callers

CHUNK: Final = 8 * 2**20
# How far below a call its stack may go on to where it is suspended.
DEEPEST: Final = 2**18
_UNSHARED: Final = 24  # low bits of an address that are not searched for, but compared
_BETWEEN_TENDS: Final = 1000
SHORTEST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
REPORT_EVERY_S: Final = 1.0


@dataclass(frozen=True)
class Suspended:
    """A call that will be returned into: which function, the address in it, where in memory that was found."""

    function: str
    call_site: int
    at: int


@dataclass(frozen=True)
class _Hit:
    """A word in memory that points into forbidden code."""

    at: int
    value: int
    code: CodeRange
    mapping: Mapping

    @property
    def lowest(self) -> int:
        return max(self.mapping.start, self.at - DEEPEST)


class SuspendedCalls:
    """Looks for suspended calls in the memory of a process that switches stacks.

    tend: called again and again, for a look takes seconds for each GiB that is resident; may raise.
    """

    def __init__(self, process: Process, memory: Memory, switching: Switching, tend: Callable[[], None]) -> None:
        self._process = process
        self._memory = memory
        self._switching = switching
        self._tend = tend

    def find(self, forbidden: Forbidden, rows: RowLookup) -> Suspended | None:
        """Return one suspended call of forbidden code, None where there is none.

        rows: unwind rows by run-time address; nobody waits for them.
        """
        mappings = [m for m in self._process.maps() if m.perms.startswith("rw") and m.perms.endswith("p")]
        hits = [
            _Hit(base + at, value, code, mapping)
            for mapping, base, data in self._resident(mappings)
            for at, value, code in forbidden.hits(data, len(data))
        ]
        if not hits:
            return None
        saved = SavedStacks(self._process, self._memory, self._switching)
        called = next((hit for hit in hits if saved.called_from(hit.at)), None)
        # What calls of a thread have left behind on its own stack is most of it.
        hits = sorted((hit for hit in hits if not saved.is_left(hit.at)), key=lambda hit: hit.at)
        found = called or (self._followed(saved, mappings, hits, rows) if hits else None)
        return Suspended(found.code.function, found.value, found.at) if found else None

    def _followed(self, saved: SavedStacks, mappings: list[Mapping], hits: list[_Hit], rows: RowLookup) -> _Hit | None:
        """Return a hit that a stored stack pointer leads to."""
        places = [hit.at for hit in hits]
        near = {place >> _UNSHARED << _UNSHARED for hit in hits for place in (hit.lowest, hit.at)}
        for _, base, data in self._resident(mappings):
            plain = ((pointer, saved.plain, base + at) for at, pointer in _pointers(data, near))
            mangled = ((pointer, saved.jump, base + at) for at, pointer in saved.jumps_in(data, near))
            for count, (pointer, goes_on, at) in enumerate(chain(plain, mangled)):
                if count % _BETWEEN_TENDS == 0:
                    self._tend()
                # The return address may lie right below the stack pointer.
                first = bisect_left(places, pointer - SLOT)
                if first == len(hits) or hits[first].lowest > pointer or pointer % SLOT or saved.is_left(pointer):
                    continue
                starts = goes_on(at, pointer) if not saved.is_dead(at) else []
                above = list(takewhile(lambda hit: hit.lowest <= pointer, hits[first:]))  # noqa: B023 (used at once)
                reached = _reached(saved, starts, above, rows)
                if reached is not None:
                    return reached
        return None

    def _resident(self, mappings: list[Mapping]) -> Iterator[tuple[Mapping, int, bytes]]:
        """Yield what is in memory or swapped out: reading what is neither would make it present."""
        for mapping in mappings:
            for start in range(mapping.start, mapping.end, CHUNK):
                self._tend()
                for low, high in self._memory.held_pages(start, min(start + CHUNK, mapping.end)):
                    yield from ((mapping, at, data) for at, data in self._readable(low, high))

    def _readable(self, low: int, high: int) -> Iterator[tuple[int, bytes]]:
        """Yield what can be read; guard pages (madvise(2), MADV_GUARD_INSTALL) look as if they were swapped out."""
        while low < high:
            data = self._memory.read_some(low, high - low)
            if data:
                yield low, data
            low = (low + len(data)) // PAGE * PAGE + (0 if len(data) == high - low else PAGE)


def _reached(saved: SavedStacks, starts: list[Frame], hits: list[_Hit], rows: RowLookup) -> _Hit | None:
    """Return a hit that one of several beginnings leads to, or that none of them can rule out."""
    ends = [_unwound(saved, start, hits, rows) for start in starts]
    sure = next((hit for hit, doubtful in ends if hit is not None and not doubtful), None)
    return sure or (ends[0][0] if ends and all(doubtful for _, doubtful in ends) else None)


def _unwound(saved: SavedStacks, start: Frame, hits: list[_Hit], rows: RowLookup) -> tuple[_Hit | None, bool]:
    """Unwind a stack; return the first hit that is one of its frames, and whether that is not known for sure."""
    by_place = {hit.at: hit for hit in hits}
    base, last, pc = start.registers[RSP], hits[-1].at, start.pc
    slot, found = base - SLOT, None
    if slot in by_place and by_place[slot].value == pc:
        return by_place[slot], False
    # As much as there is: the frame that passes the last one may be large.
    stack = saved.read_some(base, min(hits[0].mapping.end - base, CHUNK)) if base <= last else b""
    if base <= last and not stack:
        return hits[0], True
    owned = saved.is_owned(base)
    for caller in callers(start, stack, base, len(stack), rows) if stack else ():
        if caller is None:
            # What was put there by makecontext and its like follows no call, and is the end.
            above = next((hit for hit in hits if hit.at > slot), None) if saved.follows_a_call(pc) else None
            return (found, False) if found else (above, above is not None)
        slot, pc = caller.registers[RSP] - SLOT, caller.pc
        found = found or by_place.get(slot)
        if not owned and (found is not None or slot > last):
            return found, False
    # A thread's own stack, unwound to where the thread begins: that is looked at with the thread.
    return None, False


def _pointers(data: bytes, near: set[int]) -> Iterator[tuple[int, int]]:
    """Yield every aligned word that has its high bits from an address of `near`: where it is, and its value."""
    for address in near:
        yield from words_with((address >> _UNSHARED).to_bytes(SLOT - _UNSHARED // 8, "little"), data, len(data))


def wait_until_none(look: Callable[[], Suspended | None], emit: Callable[[Event], None], deadline: float) -> None:
    """Look until no call is suspended any more; half of the time is left to others.

    Raises:
        DeadlineError: time.monotonic() passed the deadline.
    """
    began = started = next_report = time.monotonic()
    found: Suspended | None = None
    while True:
        try:
            found = look()
        except DeadlineError:
            if found is None:
                raise
        if found is None:
            return
        now = time.monotonic()
        why = f"a call is suspended on a stack that no thread is on, at {found.at:#x}"
        if now >= deadline:
            raise DeadlineError(Reason.DEADLINE_PASSED, f"{found.function}: {why}")
        if now >= next_report:
            next_report = now + REPORT_EVERY_S
            waited = round(now - began, 3)
            where = {"function": found.function, "call_site": found.call_site}
            emit(Waiting(tid=0, name="suspended call", why=why, waited_s=waited, **where))
        time.sleep(max(SHORTEST_PAUSE_S, min(now - started, deadline - now, LONGEST_PAUSE_S)))
        started = time.monotonic()
