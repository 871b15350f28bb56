# SPDX-License-Identifier: GPL-2.0-only
"""Where in the address space our own mappings may lie."""

from typing import Final

from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.target.proc import Mapping

PAGE: Final = 4096
REACH: Final = 2**31 - 2**20
GUARD: Final = 16 * PAGE
HEAP_ROOM: Final = 2**34
# Of a process with limits the kernel itself keeps 128 MiB free below the stack (mmap_base, arch/x86/mm/mmap.c).
STACK_ROOM: Final = 2**30
LOWEST: Final = 0x10000
HIGHEST: Final = 2**47 - PAGE
# For shadow variables; pages become resident when they are used.
ARENA_SIZE: Final = 64 * 2**20


def pages(size: int) -> int:
    """Round a size in bytes up to whole pages."""
    return -(-size // PAGE) * PAGE


def trampoline_room(maps: list[Mapping], low: int, high: int, size: int) -> int | None:
    """Return an address in [low, high] with `size` bytes up to high on pages that are free, None when there is none."""
    page = max(low, LOWEST) // PAGE * PAGE
    while page < min(high, HIGHEST):
        taken = next((m for m in maps if m.start < page + PAGE and page < m.end), None)
        address = max(page + 16, low)
        if taken is None and address + size - 1 <= min(page + PAGE - 1, high):
            return address
        page = max(page + PAGE, pages(taken.end) if taken else 0)
    return None


def gap_near(maps: list[Mapping], address: int, size: int, reach: int = REACH) -> int:
    """Return the start of a free range of `size` bytes within `reach` of an address: below it if possible, near it.

    A guard stays free on both sides, and what the heap and the stack may grow by. Below comes first because the heap
    of a program starts a random distance above its last mapping; above is what a process has whose own memory fills
    the gigabytes below its libraries.

    Raises:
        Refusal: NO_ROOM_NEARBY.
    """
    best: tuple[bool, int, int] | None = None
    previous_end, previous_path = LOWEST, ""
    for mapping in [*maps, None]:
        start, path = (mapping.start, mapping.path) if mapping else (HIGHEST, "")
        low = previous_end + (HEAP_ROOM if previous_path == "[heap]" else GUARD)
        high = start - (STACK_ROOM if path == "[stack]" else GUARD) - size
        if low <= high:
            candidate = min(max(address // PAGE * PAGE, low), high) // PAGE * PAGE
            far = max(abs(candidate - address), abs(candidate + size - address))
            if low <= candidate and far < reach:
                ranked = (candidate > address, far, candidate)
                best = ranked if best is None else min(best, ranked)
        if mapping:
            previous_end, previous_path = mapping.end, mapping.path
    if best is None:
        raise Refusal(Reason.NO_ROOM_NEARBY, f"no free {size} bytes within {reach} bytes of {address:#x}")
    return best[2]
