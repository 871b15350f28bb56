# SPDX-License-Identifier: GPL-2.0-only
"""Exceptions in new code: the C++ runtime is told where its unwind data is, and no longer when the patches have gone.

libgcc asks `_Unwind_Find_FDE` for the entry of each frame (unwind-dw2-fde.c). Its registration functions take a lock,
and since GCC 13 memory from malloc, so they are not for a thread that the C library does not know. Here nothing of the
program is called or locked: the one instruction in libgcc by which it calls that function, the jump in its procedure
linkage table, is replaced by a page switch. The routine behind it looks through a table of new functions and asks the
original for all others. Neither is ever unmapped, and entries of the table are only added, the count last; so it does
not matter what threads do meanwhile, and an exception may be under way.
"""

import struct
from typing import Final

from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_engine.code.stubs import near_jump
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.helper.rpc import PLACES_TO_TRY, PROT_NONE, PROT_RW, PROT_RX, protect, try_map_fixed
from podgraft_engine.inspection import Target
from podgraft_engine.patched.pages import Pages, compose
from podgraft_engine.patched.state import FinderRecord, PatchRecord, State
from podgraft_engine.runtime import Lookup, find_lookup
from podgraft_engine.target.ehframe import EhFrame
from podgraft_engine.target.layout import PAGE, gap_near

_JUMP_SIZE: Final = 6

CODE_SIZE: Final = PAGE
DATA_SIZE: Final = 16 * PAGE
# A pristine twin, one clone under way, and one in reserve.
WORKSPACE_SIZE: Final = 3 * PAGE
AREA_SIZE: Final = CODE_SIZE + DATA_SIZE + WORKSPACE_SIZE
# In the data: the number of entries, the original function, and the entries: start, size, unwind entry.
_HEAD: Final = struct.Struct("<2Q")
_ENTRY: Final = struct.Struct("<3Q")
MAX_ENTRIES: Final = (DATA_SIZE - _HEAD.size) // _ENTRY.size


def routine(address: int, data: int) -> bytes:
    """Encode the routine: `_Unwind_Find_FDE(pc, bases)` for the entries of the table, else on in the original.

    Only registers that a call does not keep are used, and no stack.
    """
    entries = data + _HEAD.size
    code = b"\xf3\x0f\x1e\xfa"  # endbr64
    code += b"\x48\x8b\x05" + struct.pack("<i", data - (address + len(code) + 7))  # mov rax, [count]
    code += b"\x48\x8d\x15" + struct.pack("<i", entries - (address + len(code) + 7))  # lea rdx, [entries]
    loop = len(code)
    body = b"\x48\xff\xc8"  # dec rax
    body += b"\x48\x89\xf9"  # mov rcx, rdi
    body += b"\x48\x2b\x0a"  # sub rcx, [rdx]
    body += b"\x48\x3b\x4a\x08"  # cmp rcx, [rdx+8]
    body += b"\x72\x06"  # jb found
    body += b"\x48\x83\xc2\x18"  # add rdx, 24
    body += b"\xeb" + struct.pack("<b", -(5 + len(body) + 2))  # jmp loop
    answer = b"\x31\xc0"  # found: xor eax, eax
    answer += b"\x48\x89\x06"  # mov [rsi], rax: base of text, not used
    answer += b"\x48\x89\x46\x08"  # mov [rsi+8], rax: base of data, not used
    answer += b"\x48\x8b\x02"  # mov rax, [rdx]
    answer += b"\x48\x89\x46\x10"  # mov [rsi+16], rax: the function
    answer += b"\x48\x8b\x42\x10"  # mov rax, [rdx+16]
    answer += b"\xc3"  # ret
    code += b"\x48\x85\xc0" + bytes([0x74, len(body) + len(answer)]) + body + answer  # loop: test rax, rax; je original
    code += b"\xff\x25" + struct.pack("<i", data + 8 - (address + len(code) + _JUMP_SIZE))  # jmp *original
    assert loop + 5 + len(body) + len(answer) + _JUMP_SIZE == len(code)  # noqa: S101 (the distances above)
    return code


class Exceptions:
    """What the C++ runtime of one process knows of our code."""

    def __init__(self, target: Target, state: State, helper: Helper) -> None:
        self._target = target
        self._memory = target.memory
        self._state = state
        self._helper = helper
        self._pages = Pages(target.process, target.memory, helper, state)

    def announce(self, record: PatchRecord) -> None:
        """Let the runtime find the unwind data of a patch; nothing runs its code yet.

        Raises:
            PodgraftError: NO_ROOM_NEARBY.
        """
        lookup = find_lookup(self._target.modules, self._memory, self._state) if record.eh_frame else None
        if lookup is None:
            return
        finder = self._finder(lookup)
        self._add(finder, record)
        self._want(finder, wanted=True)

    def settle(self) -> None:
        """Take the jump away where no patch is in that has unwind data, also what an engine before us left."""
        needed = any(patch.eh_frame for patch in self._state.document.visible())
        for finder in self._state.document.finders:
            if finder.wanted and not needed:
                self._want(finder, wanted=False)
            elif not finder.wanted:
                self._switch(finder)

    def _finder(self, lookup: Lookup) -> FinderRecord:
        module = lookup.module
        first = module.mappings[0]
        for known in self._state.document.finders:
            if (known.place, known.device, known.inode) == (lookup.place, first.device, first.inode):
                return known
        for _ in range(PLACES_TO_TRY):
            start = gap_near(self._target.process.maps(), lookup.place, AREA_SIZE)
            if try_map_fixed(self._helper, start, AREA_SIZE, PROT_NONE):
                break
        else:
            raise Refusal(Reason.NO_ROOM_NEARBY, "the program maps memory faster than a place near libgcc is found")
        data = start + CODE_SIZE
        protect(self._helper, start, CODE_SIZE, PROT_RX)
        protect(self._helper, data, DATA_SIZE, PROT_RW)
        self._memory.write(start, routine(start, data))
        self._memory.write(data, _HEAD.pack(0, lookup.function))
        finder = FinderRecord(
            device=first.device,
            inode=first.inode,
            place=lookup.place,
            jump=near_jump(lookup.place, start).hex(),
            data=data,
            workspace=data + DATA_SIZE,
            workspace_size=WORKSPACE_SIZE,
        )
        self._state.document.finders.append(finder)
        self._state.commit()
        return finder

    def _add(self, finder: FinderRecord, record: PatchRecord) -> None:
        """Add the functions of a patch to the table; the count comes last."""
        if record.eh_frame is None:
            return
        address, size = record.eh_frame
        frames = EhFrame(self._memory.read(address, size), address, None)
        (count, _) = _HEAD.unpack(self._memory.read(finder.data, _HEAD.size))
        if count > MAX_ENTRIES:
            raise PodgraftError(Reason.FOREIGN_STATE, f"a table of {count} unwind entries")
        old = self._memory.read(finder.data + _HEAD.size, count * _ENTRY.size)
        known = set(_ENTRY.iter_unpack(old))
        new = [(start, end - start, address + offset) for start, end, offset in frames.entries()]
        fresh = [entry for entry in new if entry not in known]
        if count + len(fresh) > MAX_ENTRIES:
            raise Refusal(Reason.NO_ROOM_NEARBY, "the table of unwind entries is full; restart the process")
        self._memory.write(finder.data + _HEAD.size + len(old), b"".join(_ENTRY.pack(*entry) for entry in fresh))
        self._memory.write(finder.data, struct.pack("<Q", count + len(fresh)))

    def _want(self, finder: FinderRecord, *, wanted: bool) -> None:
        finder.wanted = wanted
        self._state.commit()
        self._switch(finder)

    def _switch(self, finder: FinderRecord) -> None:
        page = finder.place // PAGE * PAGE
        content = compose(self._state.document, page)
        if content:
            self._pages.switch(page, content)
        elif self._pages.has(page):
            self._pages.restore(page)
