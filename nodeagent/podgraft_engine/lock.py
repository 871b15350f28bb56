# SPDX-License-Identifier: GPL-2.0-only
"""One engine per process at a time: ptrace does not prevent two (carrier findings, section 7).

The mailbox is locked as soon as a helper lives, across all namespaces; this file closes the gap before that.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from podgraft_bundle.errors import Reason, Refusal


@contextmanager
def engine_lock(pid: int) -> Iterator[None]:
    """Hold the byte at offset `pid` of the node's lock file while working on that process.

    Raises:
        Refusal: BUSY when another engine has it, PERMISSION_DENIED when there can be no lock file.
    """
    folder = Path(os.environ.get("PODGRAFT_RUN", "/run/podgraft"))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / "engines.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = f"make {folder} writable, or name another folder in PODGRAFT_RUN"
        raise Refusal(Reason.PERMISSION_DENIED, f"no lock file in {folder}: {error.strerror}", hint) from None
    try:
        _lock_byte(fd, pid)
        yield
    finally:
        os.close(fd)


def _lock_byte(fd: int, pid: int) -> None:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, pid)
    except BlockingIOError:
        raise Refusal(Reason.BUSY, f"another engine works on process {pid}") from None
