# SPDX-License-Identifier: GPL-2.0-only
"""The block: a home in unused bytes after a text segment, its slots, and the root pointer to our state.

The source of the code is asm/block.S. It is found again with no memory at all: the same order of homes, the magic.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from io import BytesIO
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_engine.steps import Step, reached
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Mapping, Process

CODE: Final = resources.files("podgraft_engine.helper").joinpath("asm/block.bin").read_bytes()
MAGIC: Final = CODE[:8]
CARRIER: Final = 0xD0
SLOTS: Final = struct.Struct("<8s25Q")
# The layout of asm/block.S; _s and _ns are the halves of a timespec.
FIELDS: Final[tuple[str, ...]] = (
    *("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r10", "r11", "rsp", "flags", "rip", "after", "mask", "ones", "fsbase"),
    *("mode", "mailbox", "idle_s", "idle_ns", "zero_s", "zero_ns", "tid", "state", "size", "check"),
)
PAGE: Final = 4096
MASK64: Final = 2**64 - 1


@dataclass(frozen=True)
class Home:
    """Unused bytes at the end of an executable mapping: address, size, and the file's name for humans."""

    address: int
    size: int
    path: str


class Block:
    """The block in one process; slots are read and written as a whole, within one page."""

    def __init__(self, memory: Memory, address: int) -> None:
        self._memory = memory
        self.address = address
        self.end = address + len(CODE)

    def slots(self) -> dict[str, int]:
        """Read the slots."""
        raw = self._memory.read(self.address, SLOTS.size)
        return dict(zip(FIELDS, SLOTS.unpack(raw)[1:], strict=True))

    def write_slots(self, values: dict[str, int]) -> None:
        """Write all slots with one system call."""
        words = [values.get(name, 0) & MASK64 for name in FIELDS]
        self._memory.write(self.address, SLOTS.pack(MAGIC, *words))

    def root(self) -> tuple[int, int] | None:
        """Return address and size of the state mapping, None when there is none yet."""
        slots = self.slots()
        if not slots["state"]:
            return None
        if slots["check"] != self._check(slots["state"], slots["size"]):
            raise PodgraftError(Reason.FOREIGN_STATE, "the root pointer in the block is damaged")
        return slots["state"], slots["size"]

    def set_root(self, state: int, size: int) -> None:
        """Publish the state mapping; nobody but engines reads these slots."""
        offset = SLOTS.size - 24
        self._memory.write(self.address + offset, struct.pack("<3Q", state, size, self._check(state, size)))

    def contains(self, address: int) -> bool:
        """Tell whether an address lies in the block."""
        return self.address <= address < self.end

    @staticmethod
    def _check(state: int, size: int) -> int:
        return state ^ size ^ int.from_bytes(MAGIC, "little")


def find(process: Process, memory: Memory) -> Block | None:
    """Find our block in the process, without touching anything.

    Raises:
        Refusal: FOREIGN_STATE when another version of podgraft has left its block.
    """
    for home in homes(process, memory):
        head = memory.read(home.address, len(CODE))
        if head[:7] == MAGIC[:7]:
            if head[:8] != MAGIC or head[CARRIER:] != CODE[CARRIER:]:
                raise Refusal(Reason.FOREIGN_STATE, f"the block in {home.path} is of another podgraft version")
            return Block(memory, home.address)
    return None


def place(process: Process, memory: Memory) -> Block:
    """Write the block into the first home whose bytes are all zero.

    Raises:
        Refusal: NO_HOME_FOR_BLOCK.
    """
    home = choose_home(process, memory)
    memory.write(home.address, CODE)
    reached(Step.BLOCK_PLACED)
    return Block(memory, home.address)


def choose_home(process: Process, memory: Memory) -> Home:
    """Return the first home that is free: its bytes must be zero, and the page still the file's."""
    for home in homes(process, memory):
        if not any(memory.read(home.address, len(CODE))) and not memory.anonymous(home.address):
            return home
    raise Refusal(Reason.NO_HOME_FOR_BLOCK, f"no free {len(CODE)} bytes after any text segment")


def homes(process: Process, memory: Memory) -> Iterator[Home]:
    """Yield the possible homes in a fixed order: libc, ld.so, the program, other files, the vdso."""
    maps = process.maps()
    exe = next((m.path for m in maps if m.path.startswith("/")), "")

    def rank(mapping: Mapping) -> tuple[int, int]:
        name = mapping.path.rsplit("/", 1)[-1]
        order = (name.startswith("libc."), name.startswith("ld-"), mapping.path == exe, mapping.path != "[vdso]")
        return (order.index(True) if True in order else len(order), mapping.start)

    for mapping in sorted((m for m in maps if "x" in m.perms and "w" not in m.perms), key=rank):
        if mapping.path == "[vdso]" or (mapping.path.startswith("/") and mapping.inode):
            home = _slack(mapping, maps, memory)
            if home and home.size >= len(CODE):
                yield home


def _slack(mapping: Mapping, maps: list[Mapping], memory: Memory) -> Home | None:
    """Return the bytes between the end of the text segment and the end of its page."""
    if mapping.path == "[vdso]":
        header = memory.read(mapping.start, 64)
        table, size, count = struct.unpack_from("<Q", header, 0x28)[0], *struct.unpack_from("<2H", header, 0x3A)
        end = mapping.start + table + size * count
    else:
        segment_end = _segment_end(mapping, maps, memory)
        if segment_end is None:
            return None
        end = segment_end
    address = -(-end // 16) * 16
    return Home(address, mapping.end - address, mapping.path) if address < mapping.end else None


def _segment_end(mapping: Mapping, maps: list[Mapping], memory: Memory) -> int | None:
    """Return where the file's bytes of the executable segment in `mapping` end, from the mapped program headers."""
    first = [m for m in maps if m.path == mapping.path and m.offset == 0 and m.start <= mapping.start]
    if not first:
        return None
    try:
        elf = ELFFile(BytesIO(memory.read(first[-1].start, PAGE)))
        loads = [s.header for s in elf.iter_segments("PT_LOAD")]
    except (ELFError, PodgraftError):
        return None
    bias = first[-1].start - (loads[0].p_vaddr & -PAGE)
    for load in loads:
        start = bias + (load.p_vaddr & -PAGE)
        end = bias + load.p_vaddr + load.p_filesz
        if load.p_flags & 1 and mapping.start <= end - 1 < mapping.end and start <= mapping.end:
            return int(end)
    return None
