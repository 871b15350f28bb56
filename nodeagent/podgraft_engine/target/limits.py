# SPDX-License-Identifier: GPL-2.0-only
"""Is there room for what we map and write into the process? Asked before anything is touched.

Mappings may run out in the middle all the same, for the program maps memory as well: then old code runs on. What must
not happen is that the kernel kills the program because our pages are the last straw in its control group.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.target.memory_group import headroom
from podgraft_engine.target.proc import Process

MIB: Final = 2**20
# State, wake-up points and what of them becomes resident; a revert needs no more than that.
FIRST_ADDRESS_SPACE: Final = 4 * MIB
FIRST_MEMORY: Final = MIB
FIRST_MAPPINGS: Final = 64
# A page of the text, its twin and a clone, each with what it splits off.
MAPPINGS_OF_A_PAGE: Final = 6


@dataclass(frozen=True)
class Needs:
    """What a transition needs at most: numbers of mappings, bytes of address space, bytes of memory."""

    mappings: int = FIRST_MAPPINGS
    address_space: int = FIRST_ADDRESS_SPACE
    memory: int = FIRST_MEMORY


def needs_of(pages: int, size: int, reserved: int) -> Needs:
    """Return what a patch needs.

    Args:
        pages: how many pages of text it changes.
        size: of its object, in bytes.
        reserved: address space beyond that, in bytes.
    """
    return Needs(
        FIRST_MAPPINGS + MAPPINGS_OF_A_PAGE * pages,
        FIRST_ADDRESS_SPACE + 2 * size + reserved,
        FIRST_MEMORY + 2 * size,
    )


def check_limits(process: Process, needs: Needs) -> None:
    """Refuse where the process is near a limit.

    Raises:
        Refusal: RESOURCE_LIMIT. PodgraftError: PROCESS_EXITED.
    """
    most, has = _most_mappings(), process.map_text().count("\n")
    if most is not None and most - has < needs.mappings:
        raise Refusal(
            Reason.RESOURCE_LIMIT,
            f"the process has {has} of at most {most} mappings (vm.max_map_count), {needs.mappings} more are needed",
        )
    status = process.status(process.living_thread())
    for name, line in (("Max address space", "VmSize"), ("Max data size", "VmData")):
        limit, used = process.limit(name), int(status.get(line, "0").split()[0]) * 1024
        if limit is not None and limit - used < needs.address_space:
            detail = f"{used} of at most {limit} bytes are used ({name}), {needs.address_space} more are needed"
            raise Refusal(Reason.RESOURCE_LIMIT, detail)
    check_memory(process, needs)


def check_memory(process: Process, needs: Needs) -> None:
    """Refuse where our pages might be the last straw in the process's control group.

    Raises:
        Refusal: RESOURCE_LIMIT.
    """
    room = headroom(process)
    if room is not None and room < needs.memory:
        detail = f"its control group may use {room} more bytes of memory, {needs.memory} are needed"
        raise Refusal(Reason.RESOURCE_LIMIT, detail)


def _most_mappings() -> int | None:
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except OSError:
        return None
