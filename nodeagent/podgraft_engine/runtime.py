# SPDX-License-Identifier: GPL-2.0-only
"""Where the C++ runtime of a process asks for unwind data, and whether new code depends on it."""

import struct
from dataclasses import dataclass
from typing import Final

from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.patched.state import State
from podgraft_engine.target.layout import PAGE
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.module import Module

FIND: Final = "_Unwind_Find_FDE"
# Who refers to one of these throws, catches or cleans up behind exceptions (Itanium C++ ABI: Exception Handling).
RUNTIME: Final = ("__gxx_personality_v0", "__cxa_throw", "__cxa_rethrow", "_Unwind_Resume")
_JUMP_BY_SLOT: Final = b"\xff\x25"
_JUMP_SIZE: Final = 6


@dataclass(frozen=True)
class Lookup:
    """Where libgcc calls its function that finds unwind data: the jump's address, and the function itself."""

    module: Module
    place: int
    function: int


def find_lookup(modules: list[Module], memory: Memory, state: State | None) -> Lookup | None:
    """Return where unwind data is asked for in a process; None when there is not one place, or it was changed."""
    exporting = [m for m in modules if m.export(FIND, None)]
    if len(exporting) != 1:
        return None
    module, found = exporting[0], exporting[0].export(FIND, None)
    places = [p for slot in module.slots_of(FIND) for p in _jumps_by(module, slot)]
    ours = {p.live for p in state.document.pages} if state else set()
    if found is None or len(places) != 1:
        return None
    page = places[0] // PAGE * PAGE
    if page not in ours and memory.anonymous(page):
        return None
    return Lookup(module, places[0], found[0])


def check_exceptions(modules: list[Module], lookup: Lookup | None, needed: list[int]) -> None:
    """Refuse new code that needs the C++ runtime where that cannot be told of it.

    Args:
        modules: of the process.
        lookup: where the shared runtime asks for unwind data, if it does.
        needed: values of the references to the runtime.

    Raises:
        Refusal: EXCEPTION_TABLE.
    """
    if not needed:
        return
    if lookup is None:
        raise Refusal(Reason.EXCEPTION_TABLE, f"no shared libgcc_s with one call of {FIND} is mapped")
    for address in needed:
        module = next((m for m in modules if m.contains(address)), None)
        # A program with a runtime of its own inside would not ask the shared one.
        if module is None or (module is not lookup.module and not module.imports("_Unwind_", *RUNTIME)):
            where = module.name if module else f"{address:#x}"
            raise Refusal(Reason.EXCEPTION_TABLE, f"{where} brings its own copy of the C++ runtime")


def _jumps_by(module: Module, slot: int) -> list[int]:
    """Return the addresses of `jmp *slot(%rip)` in the code of a module."""
    found = []
    for start, code in module.texts():
        at = code.find(_JUMP_BY_SLOT)
        while 0 <= at <= len(code) - _JUMP_SIZE:
            (distance,) = struct.unpack_from("<i", code, at + 2)
            if start + at + _JUMP_SIZE + distance == slot:
                found.append(start + at)
            at = code.find(_JUMP_BY_SLOT, at + 1)
    return found
