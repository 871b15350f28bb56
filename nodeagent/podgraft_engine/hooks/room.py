# SPDX-License-Identifier: GPL-2.0-only
"""Where the helper calls hooks: the way in and out, a stack, a thread pointer, and the control words.

One mapping of our own: code, guard, stack, guard, control words with the thread's block behind them. The helper was
made by a bare clone and has neither stack nor thread pointer that it may use: the carrier's belong to the carrier.
"""

import struct
from importlib import resources
from typing import Final, NamedTuple

from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.helper.rpc import PLACES_TO_TRY, PROT_NONE, PROT_RW, PROT_RX, protect, try_map_fixed
from podgraft_engine.patched.state import NEAR, State
from podgraft_engine.steps import Step, reached
from podgraft_engine.target.layout import PAGE, gap_near
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Process

CODE: Final = resources.files("podgraft_engine.hooks").joinpath("asm/hook.bin").read_bytes()
LEAVE: Final = 0x16
STACK_SIZE: Final = 16 * PAGE
_STACK_AT: Final = 2 * PAGE
_CONTROL_AT: Final = _STACK_AT + STACK_SIZE + PAGE
SIZE: Final = _CONTROL_AT + PAGE
# asm/hook.S: run, phase, outcome, result, hook, rbx, r12, fs_base, rip, mask.
_CONTROL: Final = struct.Struct("<3Qq6Q")
POSTED, ENTERED, FINISHED = 0, 1, 2
# The thread's block as code with stack protector and libc's headers know it: itself at 0 and 0x10, the canary at 0x28.
_THREAD_AT: Final = 0x800
_THREAD_SIZE: Final = 0x38


class Control(NamedTuple):
    """How far the last call has come. run: its number; outcome: 0 when the hook returned `result`."""

    run: int
    phase: int
    outcome: int
    result: int


class Way(NamedTuple):
    """The registers that the helper gets back: those of its loop in asm/block.S."""

    rbx: int
    r12: int
    fs_base: int
    rip: int


class Room:
    """The room in one process."""

    def __init__(self, memory: Memory, address: int) -> None:
        self._memory = memory
        self.address = address
        self.stack_top = address + _STACK_AT + STACK_SIZE
        self.thread = address + _CONTROL_AT + _THREAD_AT

    def control(self) -> Control:
        """Read the control words."""
        raw = self._memory.read(self.address + _CONTROL_AT, _CONTROL.size)
        return Control(*_CONTROL.unpack(raw)[:4])

    def post(self, run: int, hook: int, back: Way) -> None:
        """Write what the way in and out needs; the helper is held, and outside."""
        words = (run, POSTED, 0, 0, hook, *back, 2**64 - 1)
        self._memory.write(self.address + _CONTROL_AT, _CONTROL.pack(*words))
        # The canary and the pointer guard are the program's, from the thread that the helper was made of.
        thread = bytearray(self._memory.read(back.fs_base, _THREAD_SIZE)) if back.fs_base else bytearray(_THREAD_SIZE)
        struct.pack_into("<3Q", thread, 0, self.thread, 0, self.thread)
        struct.pack_into("<2Q", thread, 0x18, 0, 0)
        self._memory.write(self.thread, bytes(thread))

    def holds(self, rip: int, rsp: int) -> bool:
        """Tell by its registers whether a thread is on its way through a hook."""
        return self._in_code(rip) or self.address + PAGE <= rsp <= self.stack_top

    def leaves(self, rip: int) -> bool:
        """Tell whether a thread is on its way out."""
        return self._in_code(rip) and rip >= self.address + LEAVE

    def _in_code(self, rip: int) -> bool:
        return self.address <= rip < self.address + len(CODE)


def make_room(process: Process, memory: Memory, helper: Helper, state: State) -> None:
    """Map the room, if the process has none yet.

    Raises:
        Refusal: NO_ROOM_NEARBY.
    """
    if state.document.room:
        return
    for _ in range(PLACES_TO_TRY):
        address = gap_near(process.maps(), state.address, SIZE, NEAR)
        if try_map_fixed(helper, address, SIZE, PROT_NONE):
            reached(Step.ROOM_MAPPED)
            protect(helper, address, PAGE, PROT_RX)
            protect(helper, address + _STACK_AT, STACK_SIZE, PROT_RW)
            protect(helper, address + _CONTROL_AT, PAGE, PROT_RW)
            memory.write(address, CODE)
            state.document.room = address
            state.commit()
            return
    raise Refusal(Reason.NO_ROOM_NEARBY, "the program maps memory faster than a place for a stack is found")
