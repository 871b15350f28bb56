"""Which builds a process maps: build ids of its executable files, read once for each file."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from podgraft_bundle.buildid import read_build_id

# proc_pid_maps(5): address range, permissions, offset, device, inode, path
_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) [0-9a-f]+ (\S+) (\d+)(?: +(.*))?$")
FileKey = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Modules:
    """What a process maps. vdso tells two programs in one process apart: exec places it anew."""

    build_ids: frozenset[str]
    vdso: int


class ModuleReader:
    """Reads modules of processes; files are known by device, inode, time and size."""

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._build_ids: dict[FileKey, str | None] = {}

    def read(self, pid: int) -> Modules:
        """Return the modules of a process; raises OSError when it is gone, PermissionError when it may not be read."""
        texts: dict[tuple[str, str], str] = {}
        vdso = 0
        for line in (self._proc / str(pid) / "maps").read_bytes().decode(errors="surrogateescape").split("\n"):
            match = _LINE.match(line)
            if match is None:
                continue
            start, end, perms, device, inode, path = match.groups()
            if path == "[vdso]":
                vdso = int(start, 16)
            if inode != "0" and "x" in perms:
                texts.setdefault((device, inode), f"{start}-{end}")
        found = (self._build_id(pid, span) for span in texts.values())
        return Modules(frozenset(one for one in found if one is not None), vdso)

    def _build_id(self, pid: int, span: str) -> str | None:
        """Read through map_files: the very file, also a deleted one; a path would be the container's to choose.

        Raises:
            PermissionError: without CAP_CHECKPOINT_RESTORE nothing can be said of the process.
        """
        name = self._proc / str(pid) / "map_files" / (span.lstrip("0") or "0")
        try:
            with os.fdopen(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
                stat = os.fstat(stream.fileno())
                if not S_ISREG(stat.st_mode):
                    return None
                key = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
                if key not in self._build_ids:
                    self._build_ids[key] = read_build_id(stream)
                return self._build_ids[key]
        except PermissionError:
            raise
        except OSError:
            return None  # unmapped while we looked

    def forget_beyond(self, limit: int) -> None:
        """Keep the cache small: start anew when it holds more than `limit` files."""
        if len(self._build_ids) > limit:
            self._build_ids.clear()


def start_time(proc: Path, pid: int) -> int:
    """Return field 22 of /proc/PID/stat (clock ticks since boot); raises OSError when there is no such process."""
    text = os.fsdecode((proc / str(pid) / "stat").read_bytes())
    # The name in parentheses may hold spaces and parentheses: count from the last one.
    return int(text.rpartition(")")[2].split()[19])
