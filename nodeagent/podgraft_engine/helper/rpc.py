# SPDX-License-Identifier: GPL-2.0-only
"""The memory system calls that the helper makes for us, with their answers turned into errors (mmap(2), mremap(2))."""

import errno
import os
from typing import Final

from podgraft_bundle.errors import PodgraftError, Reason
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.target import syscalls
from podgraft_engine.target.layout import PAGE

PROT_NONE: Final = 0
PROT_READ: Final = 1
PROT_RW: Final = 3
PROT_RX: Final = 5
# The program maps memory as well: a gap that was seen may be taken when the helper gets there.
PLACES_TO_TRY: Final = 8
_PRIVATE_ANONYMOUS: Final = 0x22
_FIXED: Final = 0x10
_FIXED_NOREPLACE: Final = 0x100000
_MREMAP_MAYMOVE_FIXED: Final = 3
_MREMAP_DONTUNMAP: Final = 4
_MADV_DONTNEED: Final = 4


class PlaceTakenError(PodgraftError):
    """The program mapped something where the memory map had shown a gap: choose another place."""


class NotMovedError(PodgraftError):
    """The kernel did not move a page: nothing has changed."""


def try_map_fixed(helper: Helper, address: int, size: int, protection: int) -> bool:
    """Map anonymous private memory at exactly this address; False when something is there."""
    flags = _PRIVATE_ANONYMOUS | _FIXED_NOREPLACE
    result = helper.call(syscalls.MMAP, address, size, protection, flags, -1, 0)
    if result not in (address, -errno.EEXIST):
        raise _failed("mmap", address, size, result)
    return result == address


def map_fixed(helper: Helper, address: int, size: int, protection: int) -> None:
    """Map anonymous private memory at exactly this address; never over something that is there.

    Raises:
        PlaceTakenError: something is there. PodgraftError: NO_ROOM_NEARBY when the kernel refuses for another reason.
    """
    if not try_map_fixed(helper, address, size, protection):
        raise PlaceTakenError(Reason.NO_ROOM_NEARBY, f"{size} bytes at {address:#x} are no longer free in the target")


def replace_ours(helper: Helper, address: int, size: int, protection: int) -> None:
    """Map fresh memory over a range that is ours as a whole; there is no moment at which it is free."""
    result = helper.call(syscalls.MMAP, address, size, protection, _PRIVATE_ANONYMOUS | _FIXED, -1, 0)
    if result != address:
        raise _failed("mmap", address, size, result)


def protect(helper: Helper, address: int, size: int, protection: int) -> None:
    """Change the protection of a range."""
    result = helper.call(syscalls.MPROTECT, address, size, protection)
    if result:
        raise _failed("mprotect", address, size, result)


def unmap(helper: Helper, address: int, size: int) -> None:
    """Unmap a range."""
    result = helper.call(syscalls.MUNMAP, address, size)
    if result:
        raise _failed("munmap", address, size, result)


def advise_not_needed(helper: Helper, address: int, size: int) -> None:
    """Let the kernel take back anonymous memory of ours, which reads as zeros then; locked memory it leaves alone.

    Source: madvise(2), MADV_DONTNEED.
    """
    result = helper.call(syscalls.MADVISE, address, size, _MADV_DONTNEED)
    if result not in (0, -errno.EINVAL):
        raise _failed("madvise", address, size, result)


def move_page(helper: Helper, source: int, target: int) -> None:
    """Move the page-table entry of a file page over another, in one atomic step; the source refaults from the file."""
    flags = _MREMAP_MAYMOVE_FIXED | _MREMAP_DONTUNMAP
    result = helper.call(syscalls.MREMAP, source, PAGE, PAGE, flags, target)
    if result != target:
        error = _failed("mremap", source, PAGE, result)
        raise NotMovedError(error.reason, error.detail)


def is_sealed(helper: Helper, page: int) -> bool:
    """Tell whether a page of text is sealed (mseal(2)): to ask for the protection that it has changes nothing."""
    return helper.call(syscalls.MPROTECT, page, PAGE, PROT_RX) == -errno.EPERM


def _failed(call: str, address: int, size: int, result: int) -> PodgraftError:
    name = os.strerror(-result) if -4096 < result < 0 else f"answered {result:#x}"
    # mlockall(2) has mmap answer EAGAIN.
    at_limit = result in (-errno.ENOMEM, -errno.EAGAIN)
    reason = Reason.RESOURCE_LIMIT if at_limit else Reason.NO_ROOM_NEARBY
    return PodgraftError(reason, f"{call} of {size} bytes at {address:#x} in the target: {name}")
