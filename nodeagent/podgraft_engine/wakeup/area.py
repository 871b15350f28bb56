# SPDX-License-Identifier: GPL-2.0-only
"""The memory of the wake-up points of one module: routines, what they read, and room for page clones."""

import struct
from collections.abc import Iterator
from typing import Final

from podgraft_bundle.errors import Refusal
from podgraft_engine.code.stubs import near_jump
from podgraft_engine.code.wakepoints import WakePoint
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.helper.rpc import (
    PLACES_TO_TRY,
    PROT_NONE,
    PROT_RW,
    PROT_RX,
    advise_not_needed,
    protect,
    try_map_fixed,
)
from podgraft_engine.patched.state import PointRecord, State, WakeRecord
from podgraft_engine.steps import Step, reached
from podgraft_engine.target.layout import PAGE, gap_near
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.module import Module
from podgraft_engine.target.proc import Process
from podgraft_engine.wakeup.routine import (
    AT_POINT,
    CELL,
    DATA_SIZE,
    DESCRIPTOR_AT,
    DESCRIPTOR_SIZE,
    DESCRIPTORS_AT,
    LOG_AT,
    LOG_ENTRIES,
    LOG_INDEX_AT,
    Window,
    routine,
)

CODE_SIZE: Final = 4 * PAGE
MAX_POINTS: Final = CODE_SIZE // CELL
MAX_PAGES: Final = 8
# A pristine twin for each page, one clone under way, and one in reserve.
WORKSPACE_SIZE: Final = (MAX_PAGES + 2) * PAGE
AREA_SIZE: Final = CODE_SIZE + DATA_SIZE + WORKSPACE_SIZE
_ENTRY: Final = struct.Struct("<2I")


class Area:
    """One module's area; what it consists of stands in its record."""

    def __init__(self, memory: Memory, helper: Helper, state: State, record: WakeRecord) -> None:
        self._memory = memory
        self._helper = helper
        self._state = state
        self.record = record

    @property
    def routines(self) -> Window:
        """Where the routines lie."""
        return Window(self.record.code, self.record.code + self.record.code_size)

    @property
    def pages(self) -> list[int]:
        """The pages of the program's text that ever had a point."""
        return sorted({p.address // PAGE * PAGE for p in self.record.points})

    def add(self, point: WakePoint, *, declared: bool) -> bool:
        """Write the routine of a new point; False when there is no room for more. Nothing leads there yet."""
        record = self.record
        if any(known.address == point.address for known in record.points):
            return True
        pages = {*self.pages, point.address // PAGE * PAGE}
        if len(record.points) == MAX_POINTS or len(pages) > MAX_PAGES:
            return False
        cell = record.code + CELL * len(record.points)
        back = point.address + point.displaced.len
        self._memory.write(cell, routine(cell, record.data, point.displaced, back, check=not declared))
        reached(Step.ROUTINE_WRITTEN)
        jump = near_jump(point.address, cell).hex()
        record.points.append(PointRecord(address=point.address, jump=jump, declared=declared))
        self._state.commit()
        return True

    def publish(self, generation: int, content: bytes) -> None:
        """Let the routines move threads to a generation.

        A thread may still read the descriptor before this one, so the two places take turns; by the time of the one
        after next nobody can be that late: while it is in a routine, no transition converges.
        """
        data = self.record.data
        minus, in_force = struct.unpack("<2Q", self._memory.read(data, 16))
        if minus == -generation % 2**64:
            return
        first = data + DESCRIPTORS_AT
        place = first + DESCRIPTOR_SIZE if in_force == first else first
        self._memory.write(place, content)
        # Each transition writes the log from its beginning, so that no more of it becomes resident than is needed.
        self._memory.write(data + LOG_INDEX_AT, bytes(8))
        reached(Step.DESCRIPTOR_WRITTEN)
        self._memory.write(data + DESCRIPTOR_AT, struct.pack("<Q", place))
        self._memory.write(data, struct.pack("<Q", -generation % 2**64))
        reached(Step.GENERATION_PUBLISHED)

    def log(self, generation: int) -> Iterator[tuple[int, bool]]:
        """Yield who gave itself a generation, by the thread's number for itself, and whether at a declared point."""
        (written,) = struct.unpack("<Q", self._memory.read(self.record.data + LOG_INDEX_AT, 8))
        raw = self._memory.read(self.record.data + LOG_AT, min(written, LOG_ENTRIES) * _ENTRY.size)
        for tid, given in _ENTRY.iter_unpack(raw):
            if given == generation:
                yield tid & ~AT_POINT, bool(tid & AT_POINT)

    def drop_log(self) -> None:
        """Give back the memory of the log: 8 bytes for each thread that came by. Where memory is locked it stays."""
        advise_not_needed(self._helper, self.record.data + LOG_AT, LOG_ENTRIES * _ENTRY.size)


def open_area(process: Process, memory: Memory, helper: Helper, state: State, module: Module) -> Area | None:
    """Return the area of a module, made new when there is none; None when there is no room near the module."""
    first = module.mappings[0]
    key = (module.bias, first.device, first.inode)
    known = next((w for w in state.document.wake if (w.base, w.device, w.inode) == key), None)
    if known is not None:
        return Area(memory, helper, state, known)
    start = _map_near(process, helper, module)
    if start is None:
        return None
    reached(Step.WAKE_AREA_MAPPED)
    protect(helper, start, CODE_SIZE, PROT_RX)
    protect(helper, start + CODE_SIZE, DATA_SIZE, PROT_RW)
    record = WakeRecord(
        base=module.bias,
        device=first.device,
        inode=first.inode,
        code=start,
        code_size=CODE_SIZE,
        data=start + CODE_SIZE,
        workspace=start + CODE_SIZE + DATA_SIZE,
        workspace_size=WORKSPACE_SIZE,
    )
    state.document.wake.append(record)
    state.commit()
    return Area(memory, helper, state, record)


def _map_near(process: Process, helper: Helper, module: Module) -> int | None:
    for _ in range(PLACES_TO_TRY):
        try:
            start = gap_near(process.maps(), module.middle, AREA_SIZE)
        except Refusal:
            return None  # what is near the program is enough for the patch; threads are held instead
        if try_map_fixed(helper, start, AREA_SIZE, PROT_NONE):
            return start
    return None
