# SPDX-License-Identifier: GPL-2.0-only
"""A higher priority while threads are held: an engine that waits for a processor lets the held thread wait too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_LOWEST_REAL_TIME: Final = os.sched_param(1)
_NORMAL: Final = os.sched_param(0)


@contextmanager
def raised() -> Iterator[bool]:
    """Run with the lowest real-time priority where the system allows it (CAP_SYS_NICE, a real-time share).

    Yields whether it was allowed; without it the holds are longer on a loaded node, and that is all.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, _LOWEST_REAL_TIME)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, _NORMAL)
