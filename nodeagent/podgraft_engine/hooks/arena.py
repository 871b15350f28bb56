# SPDX-License-Identifier: GPL-2.0-only
"""The shadow memory of a process: one arena for all its patches, in the layout of podgraft.h; it outlives them."""

import struct

from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.helper.rpc import PLACES_TO_TRY, PROT_NONE, PROT_RW, protect, try_map_fixed
from podgraft_engine.patched.state import NEAR, State
from podgraft_engine.steps import Step, reached
from podgraft_engine.target.layout import ARENA_SIZE, gap_near
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Process


def make_arena(process: Process, memory: Memory, helper: Helper, state: State) -> int:
    """Return the arena's address; it is mapped when the process has none yet. Zeros are an empty arena.

    Raises:
        Refusal: NO_ROOM_NEARBY.
    """
    if state.document.arena:
        return state.document.arena
    for _ in range(PLACES_TO_TRY):
        address = gap_near(process.maps(), state.address, ARENA_SIZE, NEAR)
        if try_map_fixed(helper, address, ARENA_SIZE, PROT_NONE):
            reached(Step.ARENA_MAPPED)
            protect(helper, address, ARENA_SIZE, PROT_RW)
            memory.write(address, struct.pack("<Q", ARENA_SIZE))
            state.document.arena = address
            state.commit()
            return address
    raise Refusal(Reason.NO_ROOM_NEARBY, "the program maps memory faster than a place for shadow variables is found")
