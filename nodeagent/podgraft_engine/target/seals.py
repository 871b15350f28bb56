# SPDX-License-Identifier: GPL-2.0-only
"""Sealed text (mseal(2), kernel 6.10): the kernel moves no page of it any more, so nothing can be switched there."""

import re
from collections.abc import Iterable
from typing import Final

from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.target.proc import Process

# To write an entry of smaps the kernel walks through all pages of a mapping, 15 ms for each GiB, and the process can
# map nothing meanwhile. In larger ones the helper asks (helper/rpc.py).
LARGEST: Final = 2**30
_HEAD: Final = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ")
_SEALED: Final = b"sl"


def check_seals(process: Process, pages: Iterable[int]) -> None:
    """Refuse where a page that is to be switched is sealed, as far as /proc/PID/smaps tells it cheaply.

    Raises:
        Refusal: TEXT_SEALED.
    """
    wanted = sorted(pages)
    resident = int(process.status(process.living_thread()).get("VmRSS", "0").split()[0]) * 1024
    if not wanted or resident > LARGEST:
        return
    start = end = 0
    for line in process.smaps():
        head = _HEAD.match(line)
        if head:
            start, end = int(head[1], 16), int(head[2], 16)
            if start > wanted[-1]:
                return
        elif line.startswith(b"VmFlags:") and _SEALED in line.split():
            for page in wanted:
                if start <= page < end:
                    raise sealed(page)


def sealed(page: int) -> Refusal:
    """Return the refusal for a sealed page."""
    return Refusal(Reason.TEXT_SEALED, f"the program has sealed page {page:#x} of its text (mseal)")
